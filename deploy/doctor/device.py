"""Checks a device's folder: that it can be used, its key, who else can read it, and that its data load."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from tessera.client.people.device import Device
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.folder_kinds import INTERACTIONS
from tessera.common.data.interactions import load_interactions
from tessera.common.data.questions import Questions
from tessera.common.errors import DataError, TesseraError
from tessera.common.secure.keys import NODE_KEY_FILE
from tessera.common.utils.atomic_files import read_bytes
from tessera.common.utils.encryption.seam import is_encrypted
from tessera.deploy.doctor.finding import Finding, ok, problem, warning

OTHERS = 0o077
"""What the owner's group and everybody may do with a file."""
QUESTIONS = Path("questions") / "train.safetensors"
"""What a device learns from that answers questions and recommends nothing."""


def check_device(folder: Path) -> Iterator[Finding]:
    """Check the folder of a device. One that cannot be used is not looked into."""
    access = _access(folder)
    yield access
    if access.remedy:
        return
    if is_encrypted(folder):
        try:
            yield ok("encryption", f"private files are encrypted with a {Device(folder).encryption}, which is here")
        except TesseraError as error:
            yield problem("encryption", str(error), "pass the key by TESSERA_KEY_FILE or TESSERA_PASSPHRASE")
            return
    yield from _key(folder)
    yield _privacy(folder)
    yield _data(folder)


def _access(folder: Path) -> Finding:
    """Whether files can be listed and made. It is tried, because a mode says nothing of a disk mounted read-only."""
    try:
        list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return problem(
            "device", f"{folder} is no folder", "name the device's folder: `tessera data partition` makes some"
        )
    except OSError as error:
        return problem("device", f"{folder} cannot be read: {error.strerror}", f"chown it to whoever joins: {folder}")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = f"make {folder} writable for whoever joins (chown, chmod u+rwx), on a disk mounted for writing"
        return problem("device", f"{folder} cannot be written to: {error.strerror}", remedy)
    return ok("device", f"{folder} can be read and written to")


def check_mode(topic: str, path: Path) -> Finding:
    """Whether a private key is its owner's alone."""
    mode = path.stat().st_mode & 0o777
    if mode & OTHERS:
        return problem(topic, f"{path} has mode {mode:04o}: others can use it", f"chmod 600 {path}")
    return ok(topic, f"{path.name} is its owner's alone")


def _key(folder: Path) -> Iterator[Finding]:
    """The device's key: private, readable, and the public half beside it is its own."""
    path, public = folder / NODE_KEY_FILE, folder / f"{NODE_KEY_FILE}.pub"
    if not path.exists():
        remedy = f"make it (tessera federate key {folder}) and have the server register {public.name}"
        yield warning("node key", f"{path} does not exist yet", remedy)
        return
    yield check_mode("node key", path)
    try:
        key = load_ssh_private_key(read_bytes(path), password=None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        key = None
        reason = f"{path} cannot be read: {error}"
    else:
        reason = f"{path} is not an elliptic-curve key"
    if not isinstance(key, EllipticCurvePrivateKey):
        remedy = f"bring it back from a backup; or remove it, and register the new one that `join` makes: {public.name}"
        yield problem("node key", reason, remedy)
        return
    try:
        fits = load_ssh_public_key(public.read_bytes()) == key.public_key()
    except (OSError, ValueError, UnsupportedAlgorithm):
        fits = False
    if fits:
        yield ok("node key", f"{public.name} is its public half")
    else:
        remedy = f"write it again (tessera federate key {folder}); if another was registered, register this one"
        yield problem("node key", f"{public} is missing or not the public half of {path.name}", remedy)


def _privacy(folder: Path) -> Finding:
    """Whether others on this machine can read what is private: nobody can in a folder closed to them."""
    if not folder.stat().st_mode & OTHERS:
        return ok("privacy", f"{folder} is closed to others")
    private = [folder / INTERACTIONS, folder / "secret", *folder.glob("questions/**/*"), *folder.glob("private/**/*")]
    open_to_others = [path for path in private if path.is_file() and path.stat().st_mode & OTHERS]
    if not open_to_others:
        return ok("privacy", "no private file can be read by others")
    example = open_to_others[0].relative_to(folder)
    found = f"{len(open_to_others)} private files in {folder} can be read by others on this machine, {example} for one"
    return warning("privacy", found, f"chmod 700 {folder}")


def _data(folder: Path) -> Finding:
    """Whether what the device learns from can be loaded."""
    try:
        if (folder / QUESTIONS).is_file() and not (folder / INTERACTIONS).exists():
            return ok("data", f"{len(Questions.load(folder / QUESTIONS))} questions")
        catalogue = load_catalogue(folder, modalities=False)
        events = load_interactions(folder, len(catalogue))
    except (DataError, OSError) as error:
        remedy = (
            "share out or convert the data again (tessera data partition, tessera data convert), or bring back a backup"
        )
        return problem("data", str(error), remedy)
    return ok("data", f"{len(events.users)} people, {len(events)} interactions, {len(catalogue)} items")
