"""Runs a device of a federation from its folder: makes its key, and starts its node, Tessera's own or Flower's SuperNode.

All of it stays in the device's folder: `node.key` (never leaves it), `node.key.pub` (what the server registers) and
`.flower` (Flower's home, and a note of the key that a server took in).
"""

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tessera.common.errors import RunError, TesseraError
from tessera.common.flower_internals.fleet import HEARTBEAT
from tessera.common.secure.keys import NODE_KEY_FILE
from tessera.common.utils.atomic_files import digest, write_bytes
from tessera.common.utils.folder_lock import hold_folder
from tessera.deploy.environment import NodeKind
from tessera.deploy.federation.certificates import CertificateError, check_server, node_public_key
from tessera.deploy.federation.processes import Process, end_leftovers, free_port, module, relay, start

HOME = ".flower"
POLL = "0.2"
"""Seconds between two looks of a SuperNode's SuperExec for a message to work on; Flower's default is 1."""
RETRY = 2.0
"""Seconds between two looks for a server that is not there yet."""
AGAIN = 5.0
"""Seconds until a device joins again whose node ended by itself or was refused."""
PATIENCE = {NodeKind.tessera: 3.0 * HEARTBEAT, NodeKind.flower: 90.0}
"""Seconds for which a device is refused that may be taken to be online still: a server does so for two signs of life, which
Flower's SuperNode gives every 30 s, and looks late."""
ACCEPTED = "SuperNode ID: "
"""What a node says when the server has taken it in."""
REFUSED = "[code: 2004]"
"""What Flower answers to a key it does not know or that was revoked, and to a known one that it takes to be online."""
NOTE = "accepted"
"""Below Flower's home: which key a server took in."""
SHUT_OUT = (
    "join: the server refuses this device, which it took in before: its key was revoked, or the server lost its state.db, or "
    "another machine joined with a copy of {key}. `tessera federate list` on the server says which. A revoked key is never "
    "taken again: to be let in anew, remove it and its .pub, join, and have the key registered that this makes"
)


def public_key(data_dir: Path) -> Path:
    """Where a device's public key is; its key is made on first use."""
    return node_public_key(data_dir / NODE_KEY_FILE)


def start_supernode(
    name: str,
    data_dir: Path,
    server: str,
    ca: Path,
    home: Path,
    log: Path | None = None,
    kind: NodeKind = NodeKind.tessera,
    workers: str = "",
) -> Process:
    """Start the node of a device's folder, which connects to the server at `server` ("HOST:PORT").

    It is Tessera's own (`tessera.deploy.federation.node`) or Flower's SuperNode: they do the same, at different speed. Of
    Tessera's own, several may share the warm process of the name `workers`.
    """
    public_key(data_dir)
    config = home.absolute() / "node.toml"
    # A file rather than 'data-dir="..."': Flower's parser of the latter splits at some characters a path may hold.
    write_bytes(config, f"data-dir = {json.dumps(str(data_dir.absolute()), ensure_ascii=False)}\n".encode())
    command = module("node") if kind is NodeKind.tessera else ["flower-supernode"]
    command += ["--superlink", server, "--root-certificates", str(ca.absolute())]
    command += ["--auth-supernode-private-key", str(data_dir.absolute() / NODE_KEY_FILE), "--node-config", str(config)]
    command += ["--port", str(free_port())] if kind is NodeKind.flower else ["--workers", workers]
    return start(name, command, home.absolute(), log, FLWR_SUPEREXEC_TASK_POLL_INTERVAL=POLL)


def join(data_dir: Path, server: str, ca: Path, show: Callable[[str], None], kind: NodeKind = NodeKind.tessera) -> None:
    """Serve a federation from a device's folder until interrupted, showing what its node says.

    A server that is not there yet is waited for. Once it has taken the device in, whatever ends that is waited out too: a cut,
    a restart, an expired certificate, the time for which a device that was cut off is taken to be online still.
    Raises `CertificateError` when the server cannot prove to be the one of `ca`, and `RunError` when it refuses this
    device's key, or another process has joined from this folder.
    """
    with hold_folder(data_dir):
        end_leftovers(data_dir / HOME)
        joined, refused = False, None
        while True:
            _wait_for(server, ca, show, patient=joined)
            accepted, last = _serve(data_dir, server, ca, show, kind)
            if accepted:
                joined, refused = True, None
            elif REFUSED in last and (joined or _accepted_before(data_dir, ca)):
                refused = refused or time.monotonic()
                if time.monotonic() > refused + PATIENCE[kind]:
                    raise RunError(SHUT_OUT.format(key=data_dir / NODE_KEY_FILE))
            elif not joined:
                raise RunError(explain(last, data_dir))
            why = ": the server may take this device to be online still" if refused else ""
            show(f"joining again in {AGAIN:g} s{why}")
            time.sleep(AGAIN)


def _serve(data_dir: Path, server: str, ca: Path, show: Callable[[str], None], kind: NodeKind) -> tuple[bool, str]:
    """Run a node to its end; return whether the server took it in, which is noted, and its last lines."""
    accepted = False

    def heard(line: str) -> None:
        nonlocal accepted
        show(line)
        if ACCEPTED in line and not accepted:
            accepted = True
            with suppress(OSError, TesseraError):  # on a full disk; whoever reads the node's output must not stop
                write_bytes(data_dir / HOME / NOTE, _membership(data_dir, ca))

    last = relay(start_supernode("device", data_dir, server, ca, data_dir / HOME, kind=kind), heard)
    return accepted, last


def _accepted_before(data_dir: Path, ca: Path) -> bool:
    """Whether the server of `ca` took this device's key in, in an earlier `join`."""
    note = data_dir / HOME / NOTE
    return note.exists() and note.read_bytes() == _membership(data_dir, ca)


def _membership(data_dir: Path, ca: Path) -> bytes:
    """Which key which server took in: another key, or another server's authority, begins anew."""
    return digest(public_key(data_dir).read_bytes() + ca.read_bytes()).encode()


def _wait_for(server: str, ca: Path, show: Callable[[str], None], patient: bool) -> None:
    """Wait until the server answers and, where `patient`, until it proves itself.

    A node would wait too, but for ever, and silently on bad certificates.
    """
    host, port = parse_address(server)
    told = ""
    while True:
        try:
            return check_server(host, port, ca)
        except CertificateError as error:
            if not patient:
                raise
            reason = str(error)
        except OSError as error:
            reason = f"{server} does not answer yet ({error}); waiting for it"
        if reason != told:
            show(reason)
        told = reason
        time.sleep(RETRY)


def explain(last: str, data_dir: Path) -> str:
    """Why a node ended by itself before the server had ever taken it in, from its last lines."""
    if REFUSED not in last:
        return f"join: this device's node ended:\n{last}"
    public = data_dir / f"{NODE_KEY_FILE}.pub"
    return (
        "join: the server refused this device: its key is not registered. On the server, register it with\n"
        f"    tessera federate register --dir SERVER_DIR {public.name}\n"
        f"after bringing {public} there, and join again."
    )


def parse_address(address: str) -> tuple[str, int]:
    """Split "HOST:PORT". Raises `RunError` for anything else."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:/\s]+)):(\d{1,5})", address)
    if not found:
        raise RunError(f"join: {address!r} is not HOST:PORT, like server.example:9092 or [::1]:9092")
    return found[1] or found[2], int(found[3])
