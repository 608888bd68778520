"""Reads and writes fitted readers: a dataset's towers/CLASS/reader.safetensors."""

import json
from pathlib import Path
from typing import Any

from tessera.common.errors import DataError
from tessera.common.towers.qa_reader import QAReader
from tessera.common.towers.transformer import TowerSize
from tessera.common.utils.atomic_files import read_tensors, write_tensors


def tower_path(dataset: Path, device_class: str) -> Path:
    """Where the fitted reader of a device class lies."""
    return dataset / "towers" / device_class / "reader.safetensors"


def save_reader(reader: QAReader, path: Path, about: dict[str, Any]) -> None:
    """Write a reader, atomically, with what is known `about` its fit."""
    width, depth = reader.positions.shape[1], len(reader.layers)
    dims = [layer.in_features for layer in reader.item_projections]
    metadata = about | {"width": width, "depth": depth, "feature_dims": dims}
    write_tensors(path, reader.state_dict(), {"reader": json.dumps(metadata)})


def load_reader(path: Path) -> QAReader:
    """Read a reader, frozen. Raises `DataError` that names the file."""
    tensors, metadata = read_tensors(path)
    try:
        about = json.loads(metadata["reader"])
        reader = QAReader(TowerSize(about["width"], about["depth"]), *about["feature_dims"])
        reader.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} holds no reader: {error}") from None
    return reader.eval().requires_grad_(requires_grad=False)


def read_about(path: Path, kind: str = "reader") -> dict[str, Any]:
    """What is recorded of the fit of a "reader", or of a "tower" for raw contents. Raises `DataError` that names the file."""
    _, metadata = read_tensors(path)
    try:
        about: dict[str, Any] = json.loads(metadata[kind])
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} holds no {kind}: {error}") from None
    return about
