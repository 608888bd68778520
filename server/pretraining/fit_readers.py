"""Fits the question-answering towers of a dataset: the largest class first, then the smaller ones, which learn from it.

A fit from the same content and settings is not repeated.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue, load_catalogue
from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.io import load_reader, read_about, save_reader, tower_path
from tessera.common.towers.qa_reader import QAReader
from tessera.common.towers.transformer import SIZES
from tessera.common.utils.atomic_files import digest
from tessera.common.utils.torch_device import one_thread
from tessera.server.pretraining import reader_training
from tessera.server.pretraining.aligned_init import public_rows, reader_inputs
from tessera.server.pretraining.pretext_tasks import TASKS, Pretext

LARGEST_CLASS = "base"

ARITHMETIC = "one thread"
"""How fits compute (`tessera.common.utils.torch_device.one_thread`): part of what they depend on."""

Begin = Callable[[str, int], Callable[[], None]]
"""Called with what begins and the number of its steps; what it returns is called after each."""


@one_thread()
def fit_towers(dataset: Path, classes: Sequence[str], steps: int, begin: Begin) -> dict[str, dict[str, Any]]:
    """Fit the readers of `classes` and return what is recorded of each fit.

    `begin` is called with a class and its steps before a fit, and what it returns after each step. A fit that lies there
    from the same content and settings is not repeated. Raises `ConfigError` for an unknown class, `DataError` for a dataset
    without pictures or texts.

    The same content gives the same bytes, whatever the number of cores, on the same kind of processor and version of torch.
    """
    refuse_unknown("device class", classes, SIZES)
    catalogue = load_catalogue(dataset)
    inputs, rows = reader_inputs(catalogue), public_rows(dataset, catalogue)
    pretext = cache(
        lambda: Pretext.of(inputs.image, inputs.text, rows)
    )  # seconds, for nothing where all fits are there
    fits: dict[str, dict[str, Any]] = {}
    teacher: QAReader | None = None
    keys = fit_keys(catalogue, rows, steps)
    for name in (LARGEST_CLASS, *(name for name in SIZES if name in classes and name != LARGEST_CLASS)):
        path, key = tower_path(dataset, name), keys[name]
        if not is_fitted(path, key):
            reader = reader_training.fit(SIZES[name], pretext(), inputs, teacher, steps, begin(name, steps))
            right = reader_training.accuracy(reader, pretext().about(held_out(catalogue, rows)), inputs)
            about = {"class": name, "key": key, "accuracy": right}
            save_reader(reader, path, about)
        fits[name] = read_about(path)
        teacher = load_reader(path) if name == LARGEST_CLASS else teacher
    return {name: fits[name] for name in classes}


def fit_keys(catalogue: Catalogue, rows: Tensor, steps: int) -> dict[str, str]:
    """What the fit of each class depends on, as a digest: the catalogue, its public `rows` [n] and how it is fitted."""
    names = ("BATCH", "RATE", "REGRESSION_WEIGHT", "HIDDEN", "WORD_DROPOUT", "DERIVED_WORD_DROPOUT", "N_BLOCKS")
    constants = {name: getattr(reader_training, name) for name in names}
    questions = [(instruction, weight) for instruction, _, weight in TASKS]
    content = content_hash(catalogue, rows, steps, constants, questions)
    return {name: digest(f"{content} {name} {size}".encode()) for name, size in SIZES.items()}


def ensure_towers(dataset: Path, settings: Settings, report: Callable[[str], None]) -> None:
    """Fit the towers that a run needs, unless they are there. `report` is called before each fit: it takes minutes."""

    def begin(name: str, steps: int) -> Callable[[], None]:
        report(f"fitting the tower {name!r} on the catalogue, {steps} steps: minutes, once for this dataset")
        return lambda: None

    own = [name for name in settings.mosaic.classes if name not in settings.mosaic.models]
    if own:
        fit_towers(dataset, own, reader_training.STEPS, begin)


def refuse_unknown(what: str, asked: Sequence[str], known: Collection[str]) -> None:
    """Raise `ConfigError` that names the first of `asked` that is not among the `known`."""
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise ConfigError(f"there is no {what} {unknown[0]!r}; known are {', '.join(known)}")


def is_fitted(path: Path, key: str, kind: str = "reader") -> bool:
    """Whether what lies at `path` is what a fit would give."""
    try:
        return bool(read_about(path, kind)["key"] == key)
    except (DataError, KeyError):
        return False


def content_hash(catalogue: Catalogue, rows: Tensor, steps: int, *settings: object) -> str:
    """Hash of all that a fit depends on, but for the class."""
    features = [catalogue.features[name].sha256 for name in ("image", "text")]
    return digest(repr((ARITHMETIC, features, rows.tolist(), steps, *settings)).encode())


def held_out(catalogue: Catalogue, rows: Tensor) -> Tensor:
    """The items that a fit never sees, [n]; where there are none, those it sees."""
    both = catalogue.features["image"].present & catalogue.features["text"].present
    both[rows.numpy()] = False
    return torch.from_numpy(np.flatnonzero(both)) if both.any() else rows
