"""Tells which devices a server knows: what Flower says of each, beside the key it was registered with.

Flower does not say which, so a server's folder notes each key in a file of its own, `devices/NUMBER.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.common.errors import RunError
from tessera.common.secure import keys
from tessera.common.utils.atomic_files import read_json, write_json
from tessera.deploy.federation.certificates import public_key

if TYPE_CHECKING:
    from tessera.common.flower_internals.control import KnownNode

REVOKED = "revoked"
STATES = {"unregistered": REVOKED}
"""Flower's words for a device's state that are not ours."""


@dataclass(frozen=True)
class RegisteredNode:
    """A device a server knows by its number. Of one that an older Tessera registered, `key` and `file` are ""."""

    number: str
    state: str
    since: str
    key: str
    file: str

    @property
    def revoked(self) -> bool:
        """Whether it is shut out for good."""
        return self.state == REVOKED


def fingerprint(path: Path) -> str:
    """The public key in a file as `ssh-keygen -l` names it. Raises `CertificateError` for what is none."""
    return keys.fingerprint(public_key(path))


def note(server: Path, number: str, public_key: Path) -> None:
    """Note in a server's folder which key a device was registered with."""
    write_json(_file(server, number), {"key": fingerprint(public_key), "file": str(public_key)})


def registered_nodes(server: Path, nodes: "Sequence[KnownNode]") -> list[RegisteredNode]:
    """The devices that `nodes`, Flower's list, holds, with what is noted of them."""
    devices = []
    for node in nodes:
        file = _file(server, str(node.number))
        noted = read_json(file) if file.exists() else {"key": "", "file": ""}
        since = f"{datetime.fromisoformat(node.since).astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
        state = STATES.get(node.state, node.state)
        devices.append(RegisteredNode(str(node.number), state, since, noted["key"], noted["file"]))
    return devices


def find(devices: Sequence[RegisteredNode], name: str) -> RegisteredNode:
    """The device with the number or the public key file `name`. Raises `TesseraError` when there is none."""
    wanted = name if name.isdecimal() else fingerprint(Path(name))
    for device in devices:
        if wanted in (device.number, device.key):
            return device
    raise RunError(f"revoke: the server knows no device {name}; `tessera federate list` shows those it knows")


def _file(server: Path, number: str) -> Path:
    return server / "devices" / f"{number}.json"
