"""Lets nobody in but the browser that was given the page's address, and lets no other page speak for it.

The address has a random token, which becomes a cookie for this server alone. A foreign name of the host is refused (a page of
the web that rebinds its name to this machine would come with its own), and so is a change that another page's form or script
asks for: its Origin is not ours. Nothing is changed by GET. The browser is told to load nothing from anywhere else.
"""

import hmac
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

OPEN = "/open"
"""The path that takes the token and gives the cookie."""
POLICY = "; ".join((
    "default-src 'none'", "img-src 'self'", "style-src 'self'", "script-src 'self'", "connect-src 'self'",
    "form-action 'self'", "frame-ancestors 'none'", "base-uri 'none'",
))  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer forms would come without their origin
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
READING = {"GET", "HEAD"}
WRITING = {"POST"}


class Guard:
    """Stands before a page's app on `port`; `token` opens it."""

    def __init__(self, app: ASGIApp, port: int, token: str | None = None) -> None:
        self._app, self.token = app, token or secrets.token_urlsafe(32)
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._cookie = f"tessera-{port}"  # cookies know no ports: two pages on one machine keep theirs apart
        self.address = f"http://127.0.0.1:{port}{OPEN}?token={self.token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or hand on to the app; whatever is answered has the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """What is answered instead of the page; None where it may be seen."""
        headers, method = Headers(scope=scope), scope["method"]
        if (host := headers.get("host", "")) not in self._hosts:
            return _refused("This page is opened by its address on this machine alone.")
        if method not in READING | WRITING:
            return PlainTextResponse("no such method\n", 405)
        if scope["path"] == OPEN and method in READING:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            return self._opened() if self._is_token(given) else _refused("This is not the address that was printed.")
        if not self._is_token(cookie_parser(headers.get("cookie", "")).get(self._cookie, "")):
            return _refused("Open this page by the address that the command printed: it has a key in it.")
        if method in WRITING and headers.get("origin") != f"http://{host}":
            return _refused("Another page asked for this; only this page may.")
        return None

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.token.encode())

    def _opened(self) -> Response:
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, self.token, httponly=True, samesite="strict")
        return answer


def _refused(why: str) -> Response:
    return PlainTextResponse(why + "\n", 403)
