"""Makes an operator's key, and signs the list of the devices that there are with it.

What the list says, and who reads it: `tessera.common.protocol.masked.key_list`. Where the key is kept, the list is made: best
on a machine that is not the server's. The list itself is public.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from tessera.common.errors import ConfigError, DataError, SecureSumError
from tessera.common.protocol.masked.key_list import KeyList, public_key
from tessera.common.utils.atomic_files import PRIVATE, write_bytes
from tessera.deploy.federation.certificates import CertificateError
from tessera.deploy.federation.registry import fingerprint


def make_operator_key(path: Path) -> Path:
    """Make an operator's Ed25519 key at `path`, as OpenSSH does; return where its public half is, `path` + `.pub`.

    Raises `CertificateError` where there is something already: devices believe the key they were given.
    """
    public = path.with_name(path.name + ".pub")
    for there in (path, public):
        if there.exists():
            raise CertificateError(f"operator's key: {there} exists, and devices may know it; choose another file")
    key = Ed25519PrivateKey.generate()
    write_bytes(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), PRIVATE)
    write_bytes(public, (public_line(key) + "\n").encode())
    return public


def read_operator(path: Path) -> str:
    """The operator's public key in a file, as a policy names it. Raises `ConfigError`."""
    try:
        line = path.read_text(encoding="utf-8-sig").strip()
        public_key(line)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no operator's public key ({error}); `tessera federate operator` makes one, FILE.pub"
        ) from None
    return line


def sign_list(path: Path, key: Path, add: Sequence[str], remove: Sequence[str], days: int) -> KeyList:
    """Sign the list at `path` anew with the key in `key`, with more devices or fewer; make it where there is none.

    Devices are named by files of their public keys, or by fingerprints. Raises `TesseraError` for what is no such name, for
    a device to remove that is not on the list, and for a list that another operator signed.
    """
    operator = _load(key)
    before = _before(path, operator)
    added, removed = {_name(one) for one in add}, {_name(one) for one in remove}
    if strange := sorted(removed - before.admitted):
        raise ConfigError(f"sign: {strange[0]} is not on the list {path}, so it cannot be removed")
    if both := sorted(removed & added):
        raise ConfigError(f"sign: {both[0]} is both to be added and to be removed")
    until = datetime.now(UTC).date() + timedelta(days=days)
    listed = KeyList.of((before.admitted | added) - removed, before.serial + 1, until).signed_by(operator)
    write_bytes(path, listed.write())
    return listed


def sign_for(path: Path, key: Path, devices: Iterable[Path], days: int) -> KeyList:
    """Sign a list of exactly the devices whose public keys are in these files, in the place of the one at `path`, if any; the
    operator's key is made where there is none. Raises `TesseraError`."""
    if not key.exists():
        make_operator_key(key)
    there = [fingerprint(device) for device in devices]
    before = _read(path).admitted if path.exists() else frozenset()
    return sign_list(path, key, there, sorted(before - set(there)), days)


def take_off(path: Path, revoked: Sequence[str], key: Path | None, days: int) -> Iterator[str]:
    """What there is to say of a server's list at `path`, and of devices that were revoked, by fingerprint: nothing where it
    holds none of them. With the operator's `key` they are taken off. Raises `TesseraError`."""
    listed = _read(path) if path.exists() else KeyList(())
    if not (there := sorted(listed.admitted & set(revoked))):
        return
    if key:
        signed = sign_list(path, key, (), there, days)
        yield f"{path} is number {signed.serial}, without them; where the list is kept elsewhere too, copy it there"
        return
    removals = " ".join(f"--remove {one}" for one in there)
    yield f"The operator's list {path} still holds them, so devices would. Sign it anew where the operator's key is,"
    yield f"    tessera federate sign admitted.json {removals} --key operator.key"
    yield f"and copy it to {path}: a run takes it up by itself."


def _before(path: Path, operator: Ed25519PrivateKey) -> KeyList:
    if not path.exists():
        return KeyList(())
    before = _read(path)
    if not before.is_signed(public_line(operator)):
        raise ConfigError(f"sign: {path} was not signed by this operator's key; another list, or another key")
    return before


def _read(path: Path) -> KeyList:
    try:
        return KeyList.read(path.read_bytes())
    except (OSError, SecureSumError) as error:
        raise DataError(f"{path} is no list of devices: {error}") from None


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise CertificateError(f"operator's key: {path} is not a readable OpenSSH private key: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise CertificateError(
            f"operator's key: {path} is not of type ssh-ed25519; `tessera federate operator` makes one"
        )
    return key


def _name(device: str) -> str:
    return device if device.startswith("SHA256:") else fingerprint(Path(device))


def public_line(key: Ed25519PrivateKey) -> str:
    """The public half of an operator's key, as in OpenSSH's files."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
