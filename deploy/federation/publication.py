"""Gives the published model to whoever asks: a small HTTPS server that reads, and nothing else.

    GET /manifest.json      which round of which run it is, and its files
    GET /blobs/SHA256       one of them, or the part of it that a Range header names

Nothing else is answered, and no name from outside becomes a path but 64 hexadecimal digits. It proves itself by the server's
own certificate, asks nobody who they are, and keeps no list of them.

    publication.py FOLDER HOST PORT CERTIFICATE KEY
"""

import re
import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from tessera.common.protocol.published import BLOBS, MANIFEST

AT_ONCE = 64
"""Connections at a time; more are told to come later."""
IDLE = 5
"""Seconds for which a connection is kept that asks for nothing."""


def make_app(folder: Path) -> Starlette:
    """The app that gives out what is published below `folder`."""

    def manifest(request: Request) -> Response:
        if not (path := folder / MANIFEST).is_file():
            return PlainTextResponse("no model is published yet\n", 404)
        return FileResponse(path, media_type="application/json", headers={"cache-control": "no-store"})

    def blob(request: Request) -> Response:
        name = str(request.path_params["name"])
        if not re.fullmatch("[0-9a-f]{64}", name) or not (path := folder / BLOBS / name).is_file():
            return PlainTextResponse("no such file; the manifest has changed\n", 404)
        return FileResponse(path, media_type="application/octet-stream", headers={"etag": f'"{name}"'})

    return Starlette(routes=[Route(f"/{MANIFEST}", manifest), Route(f"/{BLOBS}/{{name}}", blob)])


def main(folder: str, host: str, port: str, certificate: str, key: str) -> None:
    """Serve until told to end."""
    uvicorn.run(
        make_app(Path(folder)),
        host=host,
        port=int(port),
        ssl_certfile=certificate,
        ssl_keyfile=key,
        limit_concurrency=AT_ONCE,
        timeout_keep_alive=IDLE,
        access_log=False,
        server_header=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
