"""Makes and names the key that a server signs with."""

import base64
import hashlib
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_ssh_private_key

from tessera.common.errors import RunError
from tessera.common.utils.atomic_files import PRIVATE, write_bytes
from tessera.common.utils.folder_lock import waiting_for

SIGNING_KEY = "signing.key"
"""A server's key, where it keeps it."""
_LOCK = ".signing.lock"


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The key at `path`, which is made where there is none. Raises `RunError` for what is no such key, and `StorageError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with waiting_for(path.with_name(_LOCK)):  # two runs may begin at the same time
        if not path.exists():
            made = Ed25519PrivateKey.generate()
            write_bytes(path, made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), PRIVATE)
    with suppress(OSError, ValueError):
        key = load_ssh_private_key(path.read_bytes(), password=None)
        if isinstance(key, Ed25519PrivateKey):
            return key
    raise RunError(
        f"{path} is no key that a server signs with: restore it; devices go by the one they know and refuse others"
    )


def public_half(key: Ed25519PrivateKey) -> str:
    """A server's public key as statements name it: in hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def key_name(key: str) -> str:
    """A server's public key, in hexadecimal digits, as `ssh-keygen -l` would name it."""
    try:
        raw = bytes.fromhex(key)
    except ValueError:
        raw = key.encode()
    blob = b"".join(len(part).to_bytes(4, "big") + part for part in (b"ssh-ed25519", raw))
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
