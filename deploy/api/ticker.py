"""Says that long work goes on: a line at least every half minute where nobody sees a bar move."""

import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType

SILENCE = 30.0
"""Seconds for which nothing may be said, at most."""
LOOK = 1.0
"""Seconds between two looks."""


class Ticker:
    """Looks at some work every second and, while it is entered, `say`s what it is `about` whenever nothing was said for long.

    `watch` is called at every look. What goes wrong in a look is for the work itself to tell.
    """

    def __init__(
        self, say: Callable[[str], None], about: Callable[[float], str], watch: Callable[[], None] = lambda: None
    ) -> None:
        self.say, self.about, self.watch = say, about, watch
        self._said = time.monotonic()
        self._over = Event()
        self._thread = Thread(target=self._look_on, name="ticker", daemon=True)

    def said(self) -> None:
        """Take note that somebody else said something."""
        self._said = time.monotonic()

    def look(self, now: float) -> None:
        """Look once; `now` is the time on the monotonic clock."""
        self.watch()
        if now >= self._said + SILENCE - 2 * LOOK:
            self._said = now
            self.say(self.about(now))

    def _look_on(self) -> None:
        while not self._over.wait(LOOK):
            self.look(time.monotonic())

    def __enter__(self) -> "Ticker":
        """Begin to look."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join()


def clock(seconds: float) -> str:
    """A time in the two largest of its units, such as "3 min 20 s"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes = seconds // 60
    return f"{minutes} min {seconds % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
