"""Several files that change as one, whenever the process is killed."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from tessera.common.utils import changed_together as module
from tessera.common.utils.atomic_files import write_bytes
from tessera.common.utils.changed_together import changed_together, settle

NAMES = ("a", "below/b", "c")


def write_all(folder: Path, content: bytes) -> None:
    for name in NAMES:
        write_bytes(folder / name, content)


def contents(folder: Path) -> set[bytes]:
    settle(folder)
    assert not [path for path in folder.iterdir() if path.name == module.DECIDED]
    return {(folder / name).read_bytes() for name in NAMES}


def change_and_die(folder: Path, step: int) -> None:
    """Change all files, and be killed before the n-th rename."""
    left = [step]
    rename = Path.replace

    def counting(self: Path, target: Path) -> Path:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return rename(self, target)

    Path.replace = counting  # type: ignore[method-assign, assignment]
    with changed_together(folder) as new:
        write_all(new, b"new")


def test_killed_at_any_rename_all_files_are_old_or_all_are_new(tmp_path: Path) -> None:
    seen = []
    for step in range(8):
        folder = tmp_path / str(step)
        write_all(folder, b"old")
        process = multiprocessing.get_context("fork").Process(target=change_and_die, args=(folder, step))
        process.start()
        process.join()
        seen.append(process.exitcode)
        assert contents(folder) == ({b"old"} if step < 4 else {b"new"})  # 3 files are written, then decided
        with changed_together(folder) as new:
            write_all(new, b"newer")
        assert contents(folder) == {b"newer"}
    assert seen == [-signal.SIGKILL] * 7 + [0]


def test_what_fails_changes_nothing(tmp_path: Path) -> None:
    write_all(tmp_path, b"old")

    def change() -> None:
        with changed_together(tmp_path) as new:
            write_all(new, b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        change()
    assert contents(tmp_path) == {b"old"}
