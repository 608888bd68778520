"""Lists the keys of a federation's devices: those its operator admits, signed; or, unsigned, those a server says there are.

It travels beside a group's roster (`tessera.common.secure.messages`). A device whose policy names the operator's public key
takes groups of the signed list's devices alone, so that a server can invent none; another remembers the keys it was first
told of. The list is a file of JSON, made where the operator's private key is, which need not be the server:

    format      1
    serial      a number that grows with each list, by which a device knows an older one; 0 where nobody signed it
    until       the day (UTC) after which no device takes it any more: a revoked key comes back by no old list after that
    keys        fingerprints of the devices' public keys, as `ssh-keygen -l` names them, increasing
    signature   Ed25519 (RFC 8032) over all else, in hexadecimal digits
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import cached_property

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from tessera.common.errors import SecureSumError

FORMAT = 1
MOST_KEYS, LONGEST_KEY = 1_000_000, 64
_DOMAIN = b"tessera list of devices, version 1: "


@dataclass(frozen=True)
class KeyList:
    """Fingerprints of the devices there are."""

    keys: tuple[str, ...]
    serial: int = 0
    until: str = ""
    signature: str = ""

    @classmethod
    def of(cls, keys: Iterable[str], serial: int = 0, until: date | None = None) -> "KeyList":
        """A list that nobody has signed."""
        return cls(tuple(sorted(set(keys))), serial, until.isoformat() if until else "")

    @cached_property
    def admitted(self) -> frozenset[str]:
        """Its keys."""
        return frozenset(self.keys)

    @property
    def signed(self) -> bytes:
        """What the signature is over."""
        return _DOMAIN + json.dumps(self._content(), sort_keys=True, separators=(",", ":")).encode()

    def signed_by(self, key: Ed25519PrivateKey) -> "KeyList":
        """The same, signed."""
        return replace(self, signature=key.sign(self.signed).hex())

    def is_signed(self, operator: str) -> bool:
        """Whether the operator with this public key, a line as in OpenSSH's files, signed it."""
        try:
            public_key(operator).verify(bytes.fromhex(self.signature), self.signed)
        except (InvalidSignature, ValueError):
            return False
        return True

    def is_over(self) -> bool:
        """Whether its last day is over."""
        return bool(self.until) and datetime.now(UTC).date().isoformat() > self.until

    def write(self) -> bytes:
        """As it travels, and as it lies in its file."""
        return (json.dumps(self._content() | {"signature": self.signature}, indent=1) + "\n").encode()

    @classmethod
    def read(cls, data: bytes) -> "KeyList":
        """Read what `write` wrote; whether to believe it is another question. Raises `SecureSumError` for anything else."""
        try:
            said = json.loads(data)
            found = cls(tuple(said["keys"]), said["serial"], said["until"], said["signature"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise SecureSumError("this is no list of devices' keys: it is not as Tessera writes them") from None
        texts = (found.until, found.signature, *found.keys)
        if said.get("format") != FORMAT or len(found.keys) > MOST_KEYS or type(found.serial) is not int:
            raise SecureSumError(f"this is no list of devices' keys of format {FORMAT}")
        if not all(isinstance(one, str) and len(one) <= 2 * LONGEST_KEY for one in texts) or found.serial < 0:
            raise SecureSumError("this is no list of devices' keys: something else is in it")
        return found

    def _content(self) -> dict[str, object]:
        return {"format": FORMAT, "serial": self.serial, "until": self.until, "keys": list(self.keys)}


def public_key(line: str) -> Ed25519PublicKey:
    """The operator's public key in a line as in OpenSSH's files. Raises `ValueError` for anything else."""
    try:
        key = load_ssh_public_key(line.encode())
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("an operator's key is of type ssh-ed25519")
    return key
