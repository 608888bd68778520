"""Serves a page on this machine alone, until it is told to end."""

import socket
import webbrowser
from collections.abc import Callable

import uvicorn
from starlette.applications import Starlette

from tessera.common.errors import ConfigError
from tessera.deploy.pages.guard import Guard

AT_ONCE = 32
"""Connections at a time."""


def say(what: str, browser: bool) -> Callable[[str], None]:
    """Print the address of a page, and open it where that is wanted."""

    def ready(address: str) -> None:
        print(f"{what}: {address}", flush=True)
        if browser:
            webbrowser.open(address)

    return ready


def serve(app: Starlette, port: int, ready: Callable[[str], None]) -> None:
    """Serve on 127.0.0.1 behind a `Guard`; `ready` is told the address once it answers. Raises `ConfigError`.

    `app.state.server` says when it is to end: answers that go on for ever have to end themselves.
    """
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port {port}: {error.strerror}; choose another, or 0 for a free one") from None
        listening.listen()
        guard = Guard(app, listening.getsockname()[1])
        config = uvicorn.Config(
            guard, log_level="warning", access_log=False, server_header=False, limit_concurrency=AT_ONCE, lifespan="off"
        )
        app.state.server = uvicorn.Server(config)
        ready(guard.address)
        app.state.server.run(sockets=[listening])
