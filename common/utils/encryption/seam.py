"""Seals and opens the content of private files, between the code that reads and writes files and the disk.

Of folders that are not encrypted nothing is loaded, and nothing changes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.common.errors import DamagedError

if TYPE_CHECKING:
    from tessera.common.utils.encryption.vault import Vault

NOTE = "encryption.json"
KEY_FILE, PASSPHRASE = "TESSERA_KEY_FILE", "TESSERA_PASSPHRASE"
"""Environment variables that name a key file, or hold a passphrase."""
GROWING = "ledger.jsonl"
"""To this file lines are added: each is sealed by itself."""
PRIVATE_FILES = frozenset(
    {
        "interactions.parquet",
        "people.json",
        "preferences.json",
        "secret",
        "policy.yaml",
        GROWING,
        "devices.json",
        "sums.json",
        "node.key",
    }
)
PRIVATE_FOLDERS = frozenset({"private"})
"""What of a device's folder is sealed. Items, pictures and views are public, and stay clear."""
DEPTH = 6
"""How far below a device's folder private files lie at most."""
MAGIC = b"TESSERA-SEALED-1\n"
LINE = b"sealed:"
"""Begins a sealed line."""
ask: Callable[[Path], str] | None = None
"""Asks a person for a folder's passphrase, where there is one to be asked."""


def is_encrypted(folder: Path) -> bool:
    """Whether a folder is, at least half-way."""
    return (folder / NOTE).exists()


def folder_of(path: Path) -> Path | None:
    """The encrypted folder in which `path` is private, if it is; None where it stays clear."""
    path = path.absolute()
    for depth, folder in enumerate(path.parents[:DEPTH]):
        if is_encrypted(folder):
            name = path.parts[-1 - depth]
            private = name in PRIVATE_FOLDERS if depth else name in PRIVATE_FILES
            return folder if private else None
    return None


def sealed(path: Path, content: bytes) -> bytes:
    """What to write to `path` for `content`: the same, but for a private file of an encrypted folder."""
    vault = _sealing(path)
    return vault.seal(path, content) if vault else content


def opened(path: Path, content: bytes) -> bytes:
    """What was written to `path`, from what was read there. Raises `Locked` or `DamagedError`."""
    return _vault(path).open(path, content) if content.startswith(MAGIC) else content


def sealed_line(path: Path, line: bytes) -> bytes:
    """A line, without its end, as it is to be added to `path`."""
    vault = _sealing(path)
    return vault.seal_line(path, line) if vault else line


def opened_line(path: Path, line: bytes) -> bytes:
    """The line that was added. Raises `Locked` or `DamagedError`."""
    return _vault(path).open_line(path, line) if line.startswith(LINE) else line


def _sealing(path: Path) -> "Vault | None":
    """The vault that seals `path`, where one does: a folder that is being opened for good is written in clear."""
    if (folder := folder_of(path)) is None:
        return None
    from tessera.common.utils.encryption.vault import vault_of

    vault = vault_of(folder)
    return None if vault.opening else vault


def _vault(path: Path) -> "Vault":
    from tessera.common.utils.encryption.vault import vault_of

    if (folder := folder_of(path)) is None:
        raise DamagedError(f"{path} is encrypted, and the {NOTE} of its folder is gone: restore that")
    return vault_of(folder)
