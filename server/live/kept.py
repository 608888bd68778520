"""Reads a run's files again only as far as they have changed: a page that follows runs looks at all of them every second."""

from pathlib import Path
from typing import TypeVar

from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Settings
from tessera.common.metrics.records import FILE, Record, read_line

T = TypeVar("T")
MOST = 256
"""Runs that are remembered."""


class Kept:
    """What the files of runs said when they were read last."""

    def __init__(self) -> None:
        self._settings: dict[Path, tuple[tuple[int, int, int], Settings]] = {}
        self._records: dict[Path, tuple[bytes, int, tuple[Record, ...]]] = {}

    def settings(self, run: Path) -> Settings:
        """The settings of the run in the folder `run`. Raises `ConfigError`."""
        file = run / "config.yaml"
        stat = file.stat()
        stamp = stat.st_mtime_ns, stat.st_size, stat.st_ino
        known = self._settings.get(run)
        if known is None or known[0] != stamp:
            known = stamp, load_settings(file)
            _keep(self._settings, run, known)
        return known[1]

    def records(self, run: Path) -> tuple[Record, ...]:
        """Its metrics, as `tessera.common.metrics.records.read_records` reads them. Raises `DataError` for a damaged line.

        Lines are added; where the last one that was read is not in its place any more, a resumed run has cut some off, and all
        are read again.
        """
        file = run / FILE
        if not file.exists():
            return ()
        last, end, records = self._records.get(run, (b"", 0, ()))
        with file.open("rb") as content:
            content.seek(end - len(last))
            if content.read(len(last)) != last:
                last, end, records = b"", 0, ()
                content.seek(0)
            lines = [line for line in content.read().splitlines(keepends=True) if line.endswith(b"\n")]
        found = [read_line(line, f"{file}, line {n}") for n, line in enumerate(lines, len(records) + 1)]
        if lines:
            _keep(self._records, run, (lines[-1], end + sum(map(len, lines)), (*records, *found)))
        return (*records, *found)


def _keep(known: dict[Path, T], run: Path, found: T) -> None:
    """Remember it as the newest; forget what was remembered first."""
    known.pop(run, None)
    known[run] = found
    if len(known) > MOST:
        known.pop(next(iter(known)), None)
