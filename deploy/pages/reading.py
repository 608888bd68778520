"""What all pages have in common: how a request is read, the files they give out, their frame, and how they say what failed."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from tessera.common.errors import DataError

STATIC = Path(__file__).with_name("static")
LONGEST_FORM = 1 << 16
"""Bytes that a form may have."""
FRAGMENT = "x-fragment"
"""Header by which a page's own script asks for a part of it."""


def templates(package: str, site: str, main: str, subject: str) -> Environment:
    """The templates of a page, over the frame that all have: the name of the `site`, the id of what is `main` in it, and what
    that is the `subject` of, in words."""
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("tessera.deploy.pages")])
    environment = Environment(loader=loader, autoescape=True)
    environment.filters["sentence"] = sentence
    environment.globals.update(site=site, main=main, subject=subject)
    return environment


def sentence(text: str) -> str:
    """Words as a sentence: with a capital and a full stop."""
    return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def failing(environment: Environment) -> Callable[[Request, Exception], Awaitable[Response]]:
    """What answers where something went wrong: a sentence, with a way back; to the page's own script the sentence alone."""

    async def failed(request: Request, error: Exception) -> Response:
        if request.headers.get(FRAGMENT):
            return Response(str(error), 400, media_type="text/plain")
        return HTMLResponse(environment.get_template("failed.html").render(text=str(error)), 400)

    return failed


async def body(request: Request, most: int = LONGEST_FORM) -> bytes:
    """The request's body. Raises `DataError` for one of more than `most` bytes, of which no more is read."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > most:
            raise DataError(f"That is too large: at most {most >> 20 or 1} MB can be taken in here.")
    return bytes(content)
