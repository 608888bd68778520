"""Changes several files of a folder as one: after a kill at any moment all of them are as before, or all are new.

The new files are written to a folder of their own below it, which one rename then makes the truth; what is left is to move
them to their places, which whoever reads the folder next does where a kill came in between.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from tessera.common.utils.atomic_files import storing

PREPARED, DECIDED = ".change-prepared", ".change-decided"
LOCK = ".change.lock"


@contextmanager
def changed_together(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, at their paths below `folder`, the files that take their places there at the end.

    Of several processes one after the other gets in. When what is done within raises, nothing changes.
    """
    with FileLock(folder / LOCK, preserve_lock_file=True):
        _move(folder)
        prepared = folder / PREPARED
        shutil.rmtree(prepared, ignore_errors=True)  # of one that was killed
        try:
            with storing(prepared):
                prepared.mkdir()
            yield prepared
            with storing(folder):
                prepared.replace(folder / DECIDED)
                _sync(folder)
        finally:
            shutil.rmtree(prepared, ignore_errors=True)
        _move(folder)


def settle(folder: Path) -> None:
    """Finish a change of `folder` that was decided when its process was killed. Raises `StorageError` where it cannot be."""
    if (folder / DECIDED).exists():
        with storing(folder), FileLock(folder / LOCK, preserve_lock_file=True):
            _move(folder)


def _move(folder: Path) -> None:
    """Move what was decided to its places; done twice it is the same."""
    decided = folder / DECIDED
    if not decided.exists():
        return
    with storing(folder):
        for path in sorted(path for path in decided.rglob("*") if path.is_file()):
            place = folder / path.relative_to(decided)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        _sync(folder)
        shutil.rmtree(decided)


def _sync(folder: Path) -> None:
    """Have the system write down what a folder holds."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
