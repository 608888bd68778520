"""Writes a dataset's folder as a whole or not at all, and describes what a dataset holds."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

from tessera.common.data.catalogue import Features, load_catalogue
from tessera.common.data.folder_kinds import DATASET
from tessera.common.data.interactions import TIES, Interactions, Split, load_interactions
from tessera.common.errors import DataError
from tessera.common.registry.converters import holds_users
from tessera.common.utils.atomic_files import read_json, write_json

FORMAT = 1


@contextmanager
def replacing(destination: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `destination` that takes its place at the end, whole or not at all.

    Raises `DataError` when `destination` is in use: with `overwrite` a dataset may be replaced, nothing else may.
    """
    occupied = destination.exists() and not (destination.is_dir() and not any(destination.iterdir()))
    if occupied and not overwrite:
        raise DataError(f"{destination} exists and is not empty: choose another folder, or pass --overwrite")
    if occupied and not (destination / DATASET).is_file():
        raise DataError(f"{destination} is not a dataset ({DATASET} is missing), so it is not overwritten")
    destination = destination.resolve()
    mark = f".{destination.name}.{uuid4().hex[:8]}"
    temporary, old = destination.with_name(f"{mark}.tmp"), destination.with_name(f"{mark}.old")
    try:
        with _writing(destination):
            temporary.mkdir(parents=True)
        yield temporary
        with _writing(destination):
            if occupied:
                _swap(temporary, destination, old)
            else:
                temporary.replace(destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, destination: Path, old: Path) -> None:
    """Put `temporary` in the place of `destination`, which goes only when that has worked."""
    destination.replace(old)
    try:
        temporary.replace(destination)
    except BaseException:
        old.replace(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(destination: Path) -> Iterator[None]:
    """Explain that `destination` cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{destination} cannot be written: {error}") from None


def write_description(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Write dataset.json: `about`, and the counts and features that lie below `folder`."""
    catalogue = load_catalogue(folder)
    counts = {"users": 0, "items": len(catalogue), "interactions": 0}
    if holds_users(about["kind"]):
        interactions = load_interactions(folder, len(catalogue))
        counts |= {"users": len(interactions.users), "interactions": len(interactions)}
    features = {name: summary(features) for name, features in catalogue.features.items()}
    description = {"format": FORMAT, **about, "counts": counts, "features": features}
    write_json(folder / DATASET, description)
    return description


def summary(features: Features) -> dict[str, Any]:
    """What dataset.json says of a modality."""
    return {
        "encoder": features.encoder,
        "dim": features.values.shape[1],
        "dtype": str(features.values.dtype),
        "sha256": features.sha256,
        "missing": int((~features.present).sum()),
    }


def describe(folder: Path) -> dict[str, Any]:
    """What dataset.json says, with sparsity, quartiles of the users' events, and the sizes of the split's parts.

    A dataset without users has only what dataset.json says.

    Raises `DataError` when the folder is no dataset, or its files are not the ones that dataset.json describes.
    """
    description = read_json(folder / DATASET)
    if description.get("format") != FORMAT:
        raise DataError(f"{folder / DATASET} has format {description.get('format')}, not {FORMAT}: convert it again")
    catalogue = load_catalogue(folder)
    for name, features in catalogue.features.items():
        if description["features"].get(name, {}).get("sha256") != features.sha256:
            raise DataError(f"the features {name!r} in {folder} are not those of {DATASET}: convert the data again")
    if not holds_users(description["kind"]):
        return description
    interactions = load_interactions(folder, len(catalogue))
    cells = len(interactions.users) * len(catalogue)
    lengths = np.diff(interactions.offsets)
    return {
        **description,
        "sparsity": 1 - len(interactions) / cells,
        "events_per_user": [float(value) for value in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1])],
        "split": _split_summary(interactions),
    }


def _split_summary(interactions: Interactions) -> dict[str, Any]:
    """Sizes of the parts, and the shares of targets that never occur in training and that time does not decide on."""
    given = interactions.parts is not None
    split: Split = interactions.split(given)
    cold = float((split.counts()[split.test.items] == 0).mean()) if len(split.test) else 0.0
    held_out = {"validation": split.validation, "test": split.test}
    return {
        "rule": "given" if given else "leave-one-out",
        "train": len(split.train_items),
        **{name: len(targets) for name, targets in held_out.items()},
        "cold_targets": cold,
        "ties": TIES,
        "tied": {name: float(targets.tied.mean()) if len(targets) else 0.0 for name, targets in held_out.items()},
    }
