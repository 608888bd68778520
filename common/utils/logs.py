"""Sends the program's messages to the terminal, as much as was asked for, and into a run's folder.

Everything of ours logs to loggers below `tessera`. A message names nobody's items, scores or history.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = "tessera"
RUN_LOG = "run.log"
"""In a run's folder: what happened when, INFO and above."""


class _Lenient(logging.FileHandler):
    """A log that leaves out what a full disk has no room for: whoever writes what matters says so."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, opening the file first if need be."""
        with suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Go on."""


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def log_to_terminal(level: int) -> None:
    """Write messages of `level` and above to stderr, each with its level in front."""
    logger = logging.getLogger(ROOT)
    for old in [handler for handler in logger.handlers if handler.name == ROOT]:
        logger.removeHandler(old)
    handler = logging.StreamHandler()
    handler.name, handler.formatter = ROOT, _Plain()
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO))


def is_quiet() -> bool:
    """Whether nothing but results and errors was asked for."""
    return any(one.name == ROOT and one.level >= logging.ERROR for one in logging.getLogger(ROOT).handlers)


@contextmanager
def only_from(level: int) -> Iterator[None]:
    """Within it, messages below `level` are written nowhere."""
    logger = logging.getLogger(ROOT)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def run_log(folder: Path) -> Iterator[None]:
    """Within it, messages of INFO and above are added to the folder's run.log too, each with its time."""
    logger = logging.getLogger(ROOT)
    handler = _Lenient(folder / RUN_LOG, encoding="utf-8", delay=True)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    before = logger.level
    logger.setLevel(min(before or logging.INFO, logging.INFO))
    # Where nobody said what goes to the terminal, warnings do, as they would without this.
    added = [handler] if logger.hasHandlers() or not logging.lastResort else [handler, logging.lastResort]
    for one in added:
        logger.addHandler(one)
    try:
        yield
    finally:
        for one in added:
            logger.removeHandler(one)
        handler.close()
        logger.setLevel(before)
