"""Lets one process at a time use a folder: a run's, a bench's, a server's or a device's."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tessera.common.errors import RunError
from tessera.common.utils.atomic_files import PRIVATE, storing

LOCK = ".lock"
"""A file in the folder. It stays there: removing it would let two processes lock two files of this name."""
SERVING = ".serving.lock"
"""The same for a run's ServerApp, which outlives a killed `submit`: whoever commands a run and it hold one folder."""
HOLDER = ".pid"
"""Ends the name of the file beside a lock that says which process holds it; one that was killed leaves its own behind."""


@contextmanager
def hold_folder(folder: Path, lock: str = LOCK) -> Iterator[None]:
    """Hold `folder`, which is made if need be; however this process ends, the kernel lets go of it.

    Raises `RunError` with the folder and the id of the process that holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder / (lock + HOLDER)
    try:
        held = FileLock(folder / lock, preserve_lock_file=True).acquire(timeout=0)
    except Timeout:
        process = holder.read_text(encoding="utf-8").strip() if holder.exists() else "that has just begun"
        raise RunError(
            f"{folder} is in use by process {process}: wait until that ends, or stop it; two would spoil each other's files"
        ) from None
    with held:
        with storing(holder):
            holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


@contextmanager
def waiting_for(lock: Path) -> Iterator[None]:
    """Hold a private lock file, once whoever holds it lets go. Raises `StorageError`."""
    with storing(lock):
        held = FileLock(lock, mode=PRIVATE, preserve_lock_file=True).acquire()
    with held:
        yield


def clear(folder: Path) -> None:
    """Remove all that is in a folder but its locks."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name.removesuffix(HOLDER) not in (LOCK, SERVING):
            path.unlink()
