"""Tells docker whether a container is well.

`python -IS deploy/docker/healthcheck.py server|client`, exit code 0 or 1.

Docker asks every few seconds, so only the standard library is read here, and no packages.
"""

import socket
import ssl
import sys
import time
from pathlib import Path

SERVER_NAME, CLIENT_NAME = "server", "client"
"""The names of the server and of all clients in the containers' network."""
PUBLISHED, REGISTRATION = Path("/published"), Path("/registration")
PUBLIC_KEY_FILE = REGISTRATION / f"{socket.gethostname()}.pub"
"""This container's public key where the submitter looks for it, touched while the container is well."""
FRESH = 15.0
"""Seconds after which a public key file that is not touched is that of a container that is gone."""
PORTS = (9092, 9093)
SECONDS = 4.0


def server() -> None:
    """Shake hands on the devices' port and on the operator's. Raises `OSError`."""
    context = ssl.create_default_context(cafile=PUBLISHED / "ca.crt")
    context.set_alpn_protocols(["h2", "http/1.1"])
    for port in PORTS:
        with socket.create_connection(("127.0.0.1", port), SECONDS) as plain:
            context.wrap_socket(plain, server_hostname=SERVER_NAME).close()


def client() -> None:
    """Look whether the client has shown its key and is still at it. Raises `OSError`."""
    if not fresh(PUBLIC_KEY_FILE):
        raise OSError(f"{PUBLIC_KEY_FILE} was not touched for {FRESH:g} s")


def fresh(key: Path) -> bool:
    """Whether the container that put a public key file there still runs. Raises `OSError` where there is no such file."""
    return time.time() - key.stat().st_mtime < FRESH


if __name__ == "__main__":
    try:
        {"server": server, "client": client}[sys.argv[1]]()
    except OSError as error:
        sys.exit(str(error))
