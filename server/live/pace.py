"""Says how long a run goes on, and how it takes it when too few answer: as many rounds as its settings say, or for ever."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import ITEMS, load_catalogue
from tessera.common.errors import RunStopped
from tessera.server.dispatch import Dispatcher
from tessera.server.live import stopping

Save = Callable[[int], None]
"""Writes the checkpoint of a round."""
log = logging.getLogger("tessera.server")
TRIES = 3
"""Rounds, or the same task of a round, that may come to nothing one after the other before a run gives up."""
ENDLESS = 1_000_000_000
"""More rounds than any federation lives for."""
PAUSES = (1.0, 60.0)
"""Seconds that a run that does not give up lets go by after something came to nothing: at first, and at most."""


class Pace:
    """A run of so many rounds, which ends early when nothing gets better, and gives up when nothing comes of it."""

    tells_counts = True
    """Whether evaluations tell warm targets from cold ones, by the item counts of the run's beginning."""

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self.settings, self.run_dir = settings, run_dir
        self.patience = settings.evaluation.patience
        """Evaluations without a better one after which the run ends; 0: never."""

    def require(self, done: int = 0, save: Save | None = None) -> None:
        """Raise `RunStopped` once somebody has asked that the run ends, after a checkpoint of what is `done`, if anything."""
        if not stopping.asked(self.run_dir):
            return
        if done and save:
            save(done)
        raise RunStopped(stopping.STOPPED)

    def wanted(self, done: int) -> int:
        """How many rounds are still to be trained once so many are done."""
        return self.settings.rounds - done

    def gather(self, dispatcher: Dispatcher) -> None:
        """Wait for the nodes that a run begins with. Raises `RunError` when they are not in time."""
        dispatcher.wait(self.settings.federation.nodes, self.settings.federation.timeout, self.require)

    def rounds(self, done: int, last: int, dispatcher: Dispatcher, save: Save) -> Iterator[int]:
        """The rounds after so many are done, up to the last. Raises `RunStopped` between two of them, once they are saved."""
        for round in range(done + 1, last + 1):
            self.require(round - 1, save)
            yield round

    def goes_on(self, times: int) -> bool:
        """Whether to try again what has come to nothing so many times, one after the other."""
        return times < TRIES


class Endless(Pace):
    """A run that keeps a federation training until it is stopped: devices come and go, and it waits while too few are there."""

    tells_counts = False

    def __init__(self, settings: Settings, run_dir: Path, dataset: Path) -> None:
        super().__init__(settings, run_dir)
        self.patience = 0
        self._dataset = dataset
        self._looked, self._begun = self._changed(), load_catalogue(dataset, modalities=False).sha256

    def wanted(self, done: int) -> int:
        """More than any federation lives for; a budget of epsilon may allow fewer."""
        return ENDLESS - done

    def gather(self, dispatcher: Dispatcher) -> None:
        """Wait for the nodes that the run begins with, as long as it takes."""
        dispatcher.wait(self.settings.federation.nodes, math.inf, self.require)

    def rounds(self, done: int, last: int, dispatcher: Dispatcher, save: Save) -> Iterator[int]:
        """Each round once enough nodes are there to answer it; none any more once the catalogue has a later version."""
        for round in range(done + 1, last + 1):
            self.require(round - 1, save)
            dispatcher.wait(self.settings.federation.least, math.inf, partial(self.require, round - 1, save))
            if self._has_later_version():
                log.info(
                    "the catalogue has a later version: this run ends before round %d, for one that continues it", round
                )
                return
            yield round

    def _has_later_version(self) -> bool:
        if (now := self._changed()) == self._looked:
            return False
        self._looked = now
        return load_catalogue(self._dataset, modalities=False).sha256 != self._begun

    def _changed(self) -> tuple[int, int]:
        """What tells the items' table from another: a version is another file."""
        stat = (self._dataset / ITEMS).stat()
        return stat.st_mtime_ns, stat.st_ino

    def goes_on(self, times: int) -> bool:
        """Always, after a while, unless the run is to end."""
        first, most = PAUSES
        until = time.monotonic() + min(first * 2.0 ** min(times, 10), most)
        while (left := until - time.monotonic()) > 0 and not stopping.asked(self.run_dir):
            time.sleep(min(left, first))
        return True
