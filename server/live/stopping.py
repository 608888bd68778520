"""Asks a run to end between two rounds: a file in its folder says so, which the run looks for and the next start removes."""

from pathlib import Path

from tessera.common.utils.atomic_files import storing, write_bytes

FILE = "stop"
STOPPED = "stopped from outside; go on with --resume"
"""Why a run failed that somebody stopped."""


def ask(run_dir: Path) -> None:
    """Have the run in a folder end once the round that it is in is over. Raises `StorageError`."""
    write_bytes(run_dir / FILE, b"")


def asked(run_dir: Path) -> bool:
    """Whether the run in a folder is to end."""
    return (run_dir / FILE).exists()


def forget(run_dir: Path) -> None:
    """Take back what was asked of an earlier run. Raises `StorageError`."""
    with storing(run_dir / FILE):
        (run_dir / FILE).unlink(missing_ok=True)
