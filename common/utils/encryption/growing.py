"""Adds lines to files of a device's folder that only grow, and reads them: each line is sealed by itself where the folder is
encrypted, and one that was cut off when the device was killed is known as such."""

import os
from pathlib import Path

from tessera.common.errors import DamagedError
from tessera.common.utils.atomic_files import PRIVATE, storing
from tessera.common.utils.encryption.seam import opened_line, sealed_line


def append_line(path: Path, text: str) -> None:
    """Add a line, and see it on the disk before going on. Raises `StorageError`."""
    line = sealed_line(path, text.encode()) + b"\n"
    with storing(path):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE)
        try:
            end = os.fstat(file).st_size
            whole = not end or os.pread(file, 1, end - 1) == b"\n"
            content = line if whole else b"\n" + line
            if os.write(file, content) < len(content):
                raise OSError(28, "the disk is full")
            os.fsync(file)
        finally:
            os.close(file)


def opened_or_none(path: Path, line: bytes) -> bytes | None:
    """A line in clear; None for one that was cut off."""
    try:
        return opened_line(path, line)
    except DamagedError:
        return None


def read_lines(path: Path) -> list[bytes | None]:
    """All lines of a file in clear, None for those that were cut off; none where there is no file."""
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    return [opened_or_none(path, line) for line in (lines if lines[-1] else lines[:-1])]
