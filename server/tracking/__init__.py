"""Tells the trackers that people use how a run goes: scalars as they come, the settings, and files at the end.

One tracker is one file here, made by name (`tracking` in the settings). A tracker that fails is left out for the rest of the
run, with a warning: no run ends for it. What is told are the lines of the metrics, sums and figures, and nothing of a person.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module

from tessera.common.config.settings import Settings
from tessera.common.errors import ConfigError
from tessera.common.metrics.records import Record
from tessera.server.run_folder import RunFolder
from tessera.server.tracking.base import Tracker

log = logging.getLogger("tessera.server")
MAKERS = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "prometheus": "Prometheus"}
"""Classes by name; each stands in the module of that name, and needs the extra `tracking`."""


@contextmanager
def tracked(settings: Settings, folder: RunFolder) -> Iterator[None]:
    """Tell the trackers of the settings about all that is reported to a run's folder until the block's end.

    Raises `ConfigError` where one is not installed.
    """
    told = _Told([_made(name, settings, folder) for name in settings.tracking])
    before = folder.listener

    def listen(line: Record) -> None:
        told.line(line)
        if before:
            before(line)

    folder.listener = listen if told.trackers else before
    state = "failed"
    try:
        yield
        state = "completed"
    finally:
        folder.listener = before
        told.end(state)


class _Told:
    """Trackers, without those that have failed."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self.trackers = list(trackers)

    def line(self, line: Record) -> None:
        for one in list(self.trackers):
            try:
                one.line(line)
            except Exception as error:
                log.warning("%s is told no more of this run: %s", type(one).__name__, error)
                self.trackers.remove(one)

    def end(self, state: str) -> None:
        for one in self.trackers:
            try:
                one.end(state)
            except Exception as error:
                log.warning("%s was not told the end of this run: %s", type(one).__name__, error)


def _made(name: str, settings: Settings, folder: RunFolder) -> Tracker:
    try:
        made: Tracker = getattr(import_module(f"tessera.server.tracking.{name}"), MAKERS[name])(settings, folder)
    except ImportError as error:
        raise ConfigError(
            f"tracking: {name} needs a package that is not installed ({error}): pip install 'tessera[tracking]'"
        ) from None
    return made
