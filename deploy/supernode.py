"""A device's side of a federation: its key, and the SuperNode that runs from its folder.

All of it stays in the device's folder: `node.key` (never leaves it), `node.key.pub` (what the server registers) and
`.flower` (Flower's home).
"""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import RunError
from common.files import write_bytes
from common.locks import alone
from deploy.certificates import check_server, node_public_key
from deploy.processes import Process, end_leftovers, free_port, relay, start

KEY = "node.key"
HOME = ".flower"
POLL = "0.2"
"""Seconds between two looks of a SuperNode's SuperExec for a message to work on; Flower's default is 1."""
RETRY = 2.0
"""Seconds between two looks for a server that is not there yet."""
REFUSED = "[code: 2004]"
"""What Flower answers to a key it does not know, and to a known one that it takes to be online."""


def public_key(data_dir: Path) -> Path:
    """Where a device's public key is; its key is made on first use."""
    return node_public_key(data_dir / KEY)


def start_supernode(name: str, data_dir: Path, server: str, ca: Path, home: Path, log: Path | None = None) -> Process:
    """Start the SuperNode of a device's folder, which connects to the server at `server` ("HOST:PORT")."""
    public_key(data_dir)
    config = home.absolute() / "node.toml"
    # A file rather than 'data-dir="..."': Flower's parser of the latter splits at some characters a path may hold.
    write_bytes(config, f"data-dir = {json.dumps(str(data_dir.absolute()), ensure_ascii=False)}\n".encode())
    command = ["flower-supernode", "--superlink", server, "--root-certificates", str(ca.absolute())]
    command += ["--auth-supernode-private-key", str(data_dir.absolute() / KEY)]
    command += ["--node-config", str(config), "--port", str(free_port())]
    return start(name, command, home.absolute(), log, FLWR_SUPEREXEC_TASK_POLL_INTERVAL=POLL)


def join(data_dir: Path, server: str, ca: Path, show: Callable[[str], None]) -> None:
    """Serve a federation from a device's folder until interrupted, showing what Flower says.

    Raises `CertificateError` when the server cannot prove to be the one of `ca`, and `RunError` when it refuses this
    device's key, or another process has joined from this folder. A server that is not there yet is waited for.
    """
    with alone(data_dir):
        end_leftovers(data_dir / HOME)
        _wait_for(server, ca, show)
        last = relay(start_supernode("device", data_dir, server, ca, data_dir / HOME), show)
    raise RunError(explain(last, data_dir))


def _wait_for(server: str, ca: Path, show: Callable[[str], None]) -> None:
    """Wait until the server answers. A SuperNode would wait too, but for ever, and silently on bad certificates."""
    host, port = parse_address(server)
    told = False
    while True:
        try:
            return check_server(host, port, ca)
        except OSError as error:
            if not told:
                show(f"{server} does not answer yet ({error}); waiting for it")
            told = True
            time.sleep(RETRY)


def explain(last: str, data_dir: Path) -> str:
    """Why a SuperNode ended by itself, from its last lines."""
    if REFUSED not in last:
        return f"join: Flower's SuperNode ended:\n{last}"
    public = data_dir / f"{KEY}.pub"
    return (
        "join: the server refused this device: its key is not registered. On the server, register it with\n"
        f"    tessera federate register --dir SERVER_DIR {public.name}\n"
        f"after bringing {public} there, and join again. If it is registered, this device has joined already, or was "
        "cut off less than a minute ago: wait a minute and join again."
    )


def parse_address(address: str) -> tuple[str, int]:
    """Split "HOST:PORT". Raises `RunError` for anything else."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:/\s]+)):(\d{1,5})", address)
    if not found:
        raise RunError(f"join: {address!r} is not HOST:PORT, like server.example:9092 or [::1]:9092")
    return found[1] or found[2], int(found[3])
