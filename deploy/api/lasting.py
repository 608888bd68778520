"""Keeps a federation training, one run after the other: each over the catalogue as it is, continuing the one before.

A run ends where its catalogue has got a later version. The next one, NAME-2, NAME-3 and so on, begins with its best round.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.deploy.api.federation import Federation
from tessera.deploy.api.result import Result
from tessera.server.run_folder import RunFolder


def submit_forever(
    federation: Federation,
    settings: Settings,
    catalogue: Path,
    runs: Path,
    resume: bool,
    continues: Path | str | None,
    console: Console,
) -> Result:
    """Keep a federation training until somebody stops it. Returns the last run's result where a budget of epsilon ends it.

    With `resume` the newest of the runs is gone on with, or continued where the catalogue has got a later version since. The
    first one may go on from the run `continues`.
    """

    def begun(number: int) -> bool:
        return (runs / called(settings.name, number) / "config.yaml").exists()

    number = max(1, last(begun)) if resume else 1
    if resume and begun(number) and _outdated(runs / called(settings.name, number), catalogue):
        number, resume, continues = number + 1, False, runs / called(settings.name, number)
    while True:
        own = settings.model_copy(update={"name": called(settings.name, number)})
        result = federation.submit(
            own, catalogue, runs=runs, resume=resume, continues=continues, forever=True, progress=console
        )
        if not _outdated(result.path, catalogue):
            return result
        console.print(f"{own.name} ends with its catalogue; the next run goes on with the later version", markup=False)
        number, resume, continues = number + 1, False, result.path


def called(name: str, number: int) -> str:
    """What a federation's runs are called, one after the other."""
    return name if number == 1 else f"{name}-{number}"


def last(begun: Callable[[int], bool]) -> int:
    """The number of the newest run that has begun; 0 where none has."""
    return next(number for number in itertools.count() if not begun(number + 1))


def _outdated(run: Path, catalogue: Path) -> bool:
    """Whether the dataset's catalogue is another version than the one that a run is about."""
    origin = RunFolder.look(run).origin
    return origin is not None and origin.catalogue.sha256 != load_catalogue(catalogue, modalities=False).sha256
