"""Spaces out looks for what is not there yet: soon at first, then ever later."""

from collections.abc import Iterator

GROWTH = 1.25
"""By how much a pause is longer than the one before, so that what took long is noticed late by a quarter of that."""


def growing(first: float, longest: float) -> Iterator[float]:
    """Pauses from `first` on, in seconds, none above `longest`, without end."""
    pause = first
    while True:
        yield pause
        pause = min(pause * GROWTH, longest)
