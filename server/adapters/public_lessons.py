"""Makes what a run's method needs to learn from answers to public questions: towers, questions, and how to learn."""

from pathlib import Path

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue, image_and_text
from tessera.common.errors import DataError
from tessera.common.registry.methods import FedMKTSettings
from tessera.common.towers.aligned_init import places_of, tower_folder, tower_id
from tessera.common.towers.io import load_reader
from tessera.common.towers.models.load import READER, n_parameters
from tessera.common.towers.public_questions import PublicQuestions, public_path
from tessera.common.utils.torch_device import resolve_device
from tessera.server.adapters.distillation import Distiller, Lessons, PublicTower
from tessera.server.adapters.logit_sharing import LogitSharing, begin


def distiller(settings: Settings, catalogue: Catalogue, dataset: Path) -> Distiller | None:
    """What teaches the averages of a run's classes; None where its method teaches none. Raises `DataError`."""
    mosaic = settings.mosaic
    if mosaic.method_spec.shares != "distilled" or mosaic.distillation is None:
        return None
    towers = {
        tower_id(tower_folder(dataset, name), name, mosaic): _asked(name, settings, catalogue, dataset)
        for name in sorted(set(mosaic.classes))
    }
    lessons = Lessons.of(mosaic.distillation, mosaic.batch, settings.seed)
    return Distiller(towers, mosaic.distillation, lessons)


def logit_sharing(settings: Settings, catalogue: Catalogue, dataset: Path) -> LogitSharing | None:
    """The server's model, on the largest tower of the run; None where its method has none. Raises `DataError`."""
    mosaic = settings.mosaic
    if not isinstance(mosaic.method, FedMKTSettings):
        return None
    largest = max(mosaic.classes, key=lambda name: (n_parameters(tower_folder(dataset, name)), name))
    tower = _asked(largest, settings, catalogue, dataset)
    layers, _ = places_of(tower.reader, mosaic)
    lessons = Lessons.of(mosaic.method, mosaic.batch, settings.seed)
    return LogitSharing(tower, mosaic.method, lessons, begin(tower, layers, mosaic.rank, settings.seed))


def _asked(name: str, settings: Settings, catalogue: Catalogue, dataset: Path) -> PublicTower:
    """A class's tower with the public questions. Raises `DataError` where either is missing."""
    folder, device = tower_folder(dataset, name), resolve_device(settings.device)
    path = public_path(folder, settings.mosaic)
    if path is None or not path.is_file():
        raise DataError(f"{path} does not exist: make it by `tessera data partition --config`")
    image, text = (part.to(device) for part in image_and_text(catalogue))
    return PublicTower.of(load_reader(folder / READER), PublicQuestions.load(path), image, text)
