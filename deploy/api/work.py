"""Shows work that has parts with so many steps each: a bar on a terminal, a line at least every half minute elsewhere."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tessera.common.utils.logs import is_quiet
from tessera.deploy.api.ticker import Ticker, clock

if TYPE_CHECKING:
    from tessera.common.encoders.base import Encoder, Vectors


class Work:
    """While it is entered, shows which part is at which of its steps, and the time left for the part; `stage` is what is done
    before the first part begins. With --quiet nothing is shown."""

    def __init__(self, console: Console, stage: str) -> None:
        self._console, self._stage = Console(quiet=True) if is_quiet() else console, stage
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._ticker = Ticker(self._say, self.line)
        self._opened = self._began = time.monotonic()
        self._first = self._done = self._total = 0

    def begin(self, name: str, total: int, done: int = 0) -> Callable[..., None]:
        """Begin a part of `total` steps of which some are `done`; what it returns is told of a step, or of several."""
        task = self._bar.add_task(name, total=total, completed=done)
        self._stage, self._total, self._first, self._done = name, total, done, done
        self._began = time.monotonic()

        def advance(steps: int = 1) -> None:
            self._bar.advance(task, steps)
            self._done += steps

        return advance

    def line(self, now: float) -> str:
        """What is said when nothing else is; `now` is the time on the monotonic clock."""
        passed = f"{clock(now - self._opened)} passed"
        if not self._total:
            return f"{self._stage}; {passed}, time left not known yet"
        made = self._done - self._first
        left = (now - self._began) / made * (self._total - self._done) if made else None
        told = "time left not known yet" if left is None else f"about {clock(left)} left"
        return f"{self._stage}, {self._done:,} of {self._total:,}; {passed}, {told}"

    def counted(self, encoder: "Encoder") -> "Encoder":
        """An encoder whose pictures and texts are parts of the work."""
        return Counted(encoder, self.begin)

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
            self._console.file.flush()

    def __enter__(self) -> "Work":
        """Begin to show it."""
        self._bar.start()
        if not self._console.quiet:
            self._ticker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Show it no more."""
        if not self._console.quiet:
            self._ticker.__exit__(kind, error, trace)
        self._bar.stop()


class Counted:
    """An encoder that tells how far it is, chunk by chunk."""

    def __init__(self, encoder: "Encoder", begin: Callable[[str, int], Callable[..., None]]) -> None:
        self._encoder, self._begin = encoder, begin
        self.image_name, self.text_name = encoder.image_name, encoder.text_name
        self.weights: Mapping[str, str] = encoder.weights

    def encode_images(self, paths: Sequence[Path]) -> "Vectors":
        """Features of pictures, [n, n_features]."""
        return self._encoded("encoding image", self._encoder.encode_images, paths)

    def encode_texts(self, texts: Sequence[str]) -> "Vectors":
        """Features of texts, [n, n_features]."""
        return self._encoded("encoding text", self._encoder.encode_texts, texts)

    def _encoded(self, name: str, encode: Callable[[Sequence[Any]], "Vectors"], contents: Sequence[Any]) -> "Vectors":
        import numpy as np

        from tessera.common.encoders.base import chunks

        advance, found = self._begin(name, len(contents)), []
        for chunk in chunks(contents):
            found.append(encode(chunk))
            advance(len(chunk))
        return np.concatenate(found) if found else encode(contents)
