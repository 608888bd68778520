"""Lets a run begin where another one ended: from the tensors of its best round, over a later version of the catalogue.

Rounds go on counting, so that a run that is continued with nothing changed is the run that never stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import ITEMS, Catalogue, CatalogueVersion, load_catalogue
from tessera.common.errors import ConfigError, DamagedError, RunError
from tessera.common.privacy.account import release
from tessera.common.protocol.messages import Ancestor
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils.atomic_files import read_tensors
from tessera.server.run_folder import Origin, Progress, RunFolder, Start
from tessera.server.strategies.base import Strategy

SAME = (
    "strategy",
    "data.split",
    "data.cold_items",
    "data.cold_users",
    "views.dim",
    "views.id_dim",
    "views.operators",
    "views.single",
    "views.modalities",
    "views.item_ids",
    "views.noise",
    "views.encoder",
    "local.backbone",
    "local.optimizer",
)
"""Settings that decide which tensors there are, or who is held out: a run goes on with the same."""


@dataclass(frozen=True)
class Source:
    """The best round of a run in the folder `path`: its tensors, the catalogue they are about, and what came before the run."""

    path: Path
    run: str
    round: int
    settings: Settings
    catalogue: CatalogueVersion
    progress: Progress
    tensors: Tensors
    before: tuple[Ancestor, ...]

    @property
    def ancestors(self) -> tuple[Ancestor, ...]:
        """This run up to its best round, and those that it went on from in turn."""
        return (Ancestor(self.run, self.round), *self.before)

    def require(self, settings: Settings, catalogue: Catalogue) -> None:
        """Raise `ConfigError`, `RunError` or `DataError` unless a run with these settings and items can go on from here."""
        if settings.strategy_spec.has_towers:
            raise RunError(
                f"--continue: strategy {settings.strategy.name} has devices' own towers, which no run continues"
            )
        for key in (*SAME, *(("seed",) if settings.data.cold_items or settings.data.cold_users else ())):
            if (before := _setting(self.settings, key)) != (now := _setting(settings, key)):
                raise ConfigError(
                    f"{self.path} was run with {key} {before}, these settings say {now}: a run goes on with the same {key}"
                )
        if release(self.settings.privacy, self.settings.fraction) != release(settings.privacy, settings.fraction):
            before, now = self.settings.privacy.noise_multiplier, settings.privacy.noise_multiplier
            raise ConfigError(
                f"{self.path} was run with other noise or another fraction (privacy.noise_multiplier {before:g}, now {now:g}): "
                "what both tell of a person could not be told as one epsilon; go on with the same, or begin anew"
            )
        if not catalogue.extends(self.catalogue):
            raise RunError(
                f"{self.path} was run on {self.catalogue.n_items} items, with which this catalogue of {len(catalogue)} does "
                "not begin: make its next version by `tessera data catalogue`, which moves no item"
            )
        if settings.views.noise and len(catalogue) > self.catalogue.n_items:
            raise ConfigError(
                "views.noise draws features for all items at once: a run with it goes on with the same items"
            )


def read_source(path: Path) -> Source:
    """Read what a run ended with. Raises `RunError` where it never completed a round, or nothing of it is whole."""
    if not (path / "config.yaml").exists():
        raise RunError(f"{path} holds no run to continue")
    folder = RunFolder.look(path)
    if (newest := folder.newest()) is None or not (newest[1].best.round if newest[1].best else newest[0]):
        raise RunError(f"{path} never completed a round, or no checkpoint of it is whole: there is nothing to continue")
    round = newest[1].best.round if newest[1].best else newest[0]
    try:
        tensors, _ = read_tensors(folder.checkpoint(round))
    except DamagedError as error:
        raise RunError(f"the best round of {path} cannot be continued: {error}; restore it from a backup") from None
    origin = folder.origin or _by_device(path)
    settings = load_settings(path / "config.yaml")
    return Source(path, folder.run, round, settings, origin.catalogue, newest[1], tensors, origin.continues)


def start_from(source: Source, strategy: Strategy, settings: Settings, catalogue: Catalogue) -> Start:
    """Take a run's tensors up, and return what a new run begins with. Raises what `Source.require` does."""
    source.require(settings, catalogue)
    strategy.grow(source.tensors, source.catalogue.n_items)
    spent = source.progress.trained
    grown = settings.views.fold_in and len(catalogue) > source.catalogue.n_items
    placed = source.catalogue.n_items if grown else None
    progress = Progress(best=None, told=0, due=source.round, seconds=0.0, trained=spent, n_placed=placed)
    return Start(catalogue.version, source.round, strategy.state(), progress, source.ancestors)


def _by_device(path: Path) -> Origin:
    """The catalogue of a run that did not note it, by the items that its simulated devices have."""
    device = path / "devices" / "node-0"
    if not (device / ITEMS).exists():
        raise RunError(f"{path} does not say which items it was run on, as runs did before catalogues had versions")
    return Origin(catalogue=load_catalogue(device, modalities=False).version)


def _setting(settings: Settings, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value
