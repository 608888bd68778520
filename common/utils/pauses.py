"""Spaces out looks for what is not there yet: soon at first, then ever later."""

import time
from collections.abc import Iterator

GROWTH = 1.25
"""By how much a pause is longer than the one before, so that what took long is noticed late by a quarter of that."""


def growing(first: float, longest: float) -> Iterator[float]:
    """Pauses from `first` on, in seconds, none above `longest`, without end."""
    pause = first
    while True:
        yield pause
        pause = min(pause * GROWTH, longest)


class Pauses:
    """The pauses between looks for what is not there yet: longer and longer, and no shorter than the look itself.

    `first` and `longest` are seconds.
    """

    def __init__(self, first: float = 0.02, longest: float = 0.5) -> None:
        self._pauses, self._since = growing(first, longest), time.monotonic()

    def wait(self) -> None:
        """Wait until the next look."""
        time.sleep(max(next(self._pauses), time.monotonic() - self._since))
        self._since = time.monotonic()
