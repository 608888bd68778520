"""An encrypted folder whose key is here: what it seals and opens, and how it is encrypted and decrypted as a whole."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag

from tessera.common.errors import ConfigError, DamagedError, Locked
from tessera.common.utils.atomic_files import PRIVATE, sweep, write_bytes
from tessera.common.utils.encryption import seam
from tessera.common.utils.encryption.keys import Note, Secret, seal, unseal
from tessera.common.utils.encryption.seam import (
    GROWING,
    LINE,
    MAGIC,
    NOTE,
    PRIVATE_FILES,
    PRIVATE_FOLDERS,
    is_encrypted,
    opened,
    opened_line,
    sealed_line,
)


@dataclass(frozen=True)
class Vault:
    """An encrypted folder and its key. A folder that is `opening` for good is written in clear."""

    folder: Path
    key: bytes
    opening: bool = False

    def seal(self, path: Path, content: bytes) -> bytes:
        """What to write to `path`."""
        return MAGIC + seal(self.key, content, self._name(path))

    def open(self, path: Path, content: bytes) -> bytes:
        """What was written. Raises `DamagedError`."""
        return self._opened(path, content[len(MAGIC) :])

    def seal_line(self, path: Path, line: bytes) -> bytes:
        """A line of a file that only grows, without its end."""
        return LINE + base64.b64encode(seal(self.key, line, self._name(path)))

    def open_line(self, path: Path, line: bytes) -> bytes:
        """What was written. Raises `DamagedError`."""
        try:
            return self._opened(path, base64.b64decode(line[len(LINE) :], validate=True))
        except ValueError:
            raise DamagedError(f"{path} has a line that was cut off") from None

    def _opened(self, path: Path, content: bytes) -> bytes:
        try:
            return unseal(self.key, content, self._name(path))
        except (InvalidTag, ValueError):
            raise DamagedError(f"{path} is damaged: it does not open with the folder's key") from None

    def _name(self, path: Path) -> str:
        """What a file's content is bound to: in the place of another it does not open."""
        return path.absolute().relative_to(self.folder).as_posix()


_keys: dict[Path, tuple[str, bytes]] = {}
"""Keys of folders, each with what wraps it, as long as this process runs."""


def vault_of(folder: Path) -> Vault:
    """The vault of an encrypted folder. Raises `Locked` where there is no key for it, `DamagedError` for a damaged note."""
    folder = folder.absolute()
    note = Note.read(folder / NOTE)
    if _keys.get(folder, ("", b""))[0] != note.wrapped:
        unlock(folder, Secret.of_environment() or _asked(folder, note))
    return Vault(folder, _keys[folder][1], note.state == "opening")


def unlock(folder: Path, secret: Secret) -> None:
    """Keep the key of an encrypted folder for as long as this process runs. Raises `Locked` for a wrong secret."""
    folder = folder.absolute()
    note = Note.read(folder / NOTE)
    _keys[folder] = note.wrapped, note.key(secret, folder)


def lock(folder: Path) -> None:
    """Drop the key."""
    _keys.pop(folder.absolute(), None)


def encrypt(folder: Path, secret: Secret) -> int:
    """Seal all private files of a folder; return how many. Nobody else may write there meanwhile.

    Killed half-way, the folder opens with the same secret, and the same call completes it. Raises `ConfigError` where it is
    encrypted already, and `Locked` where it was begun with another secret.
    """
    folder = folder.absolute()
    if not is_encrypted(folder):
        _write(folder, Note.new(secret))
    unlock(folder, secret)
    note = Note.read(folder / NOTE)
    if note.state == "sealed":
        raise ConfigError(f"{folder} is encrypted already, with this {note.kind}")
    _write(folder, note.model_copy(update={"state": "sealing"}))
    done = _rewrite(folder)
    _write(folder, note.model_copy(update={"state": "sealed"}))
    return done


def decrypt(folder: Path) -> int:
    """Write all private files of a folder in clear; return how many. Killed half-way, the same call completes it."""
    folder = folder.absolute()
    if not is_encrypted(folder):
        raise ConfigError(f"{folder} is not encrypted")
    vault_of(folder)
    _write(folder, Note.read(folder / NOTE).model_copy(update={"state": "opening"}))
    done = _rewrite(folder)
    (folder / NOTE).unlink()
    lock(folder)
    return done


def private_files(folder: Path) -> Iterator[Path]:
    """What is sealed in an encrypted folder."""
    yield from (folder / name for name in sorted(PRIVATE_FILES) if (folder / name).is_file())
    for name in sorted(PRIVATE_FOLDERS):
        yield from sorted(path for path in (folder / name).rglob("*") if path.is_file())


def _rewrite(folder: Path) -> int:
    """Write each private file anew, as the folder's state says now; return how many there are."""
    for leftover in (
        folder,
        *(path for name in PRIVATE_FOLDERS for path in (folder / name).rglob("*") if path.is_dir()),
    ):
        sweep(leftover)
    paths = list(private_files(folder))
    for path in paths:
        content, mode = path.read_bytes(), path.stat().st_mode & 0o777
        if path.name == GROWING and path.parent == folder:
            _rewrite_lines(path, content)
        else:
            write_bytes(path, opened(path, content), mode)
    return len(paths)


def _rewrite_lines(path: Path, content: bytes) -> None:
    """The same of a file to which lines are added. A line that was cut off stays so."""
    lines = []
    for line in content.splitlines():
        try:
            lines.append(sealed_line(path, opened_line(path, line)))
        except DamagedError:
            lines.append(line)
    write_bytes(path, b"".join(line + b"\n" for line in lines), PRIVATE, seal=False)


def _write(folder: Path, note: Note) -> None:
    write_bytes(folder / NOTE, (note.model_dump_json(indent=1) + "\n").encode(), PRIVATE)


def _asked(folder: Path, note: Note) -> Secret:
    if note.kind == "passphrase" and seam.ask:
        return Secret.passphrase(seam.ask(folder))
    means = "--key-file or TESSERA_KEY_FILE" if note.kind == "key-file" else "TESSERA_PASSPHRASE, or on a terminal"
    raise Locked(f"{folder} is encrypted with a {note.kind}: open it by {means}")
