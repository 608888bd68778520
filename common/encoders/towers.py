"""Encodes pictures and texts by Tessera's own towers, and reads and writes these.

On disk they are a dataset's towers/CLASS/image.safetensors and text.safetensors, which `tessera towers fit` makes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tessera.common.config.settings import TOWER_DIM
from tessera.common.data.pictures import open_picture
from tessera.common.encoders.base import Vectors, chunks
from tessera.common.errors import DataError
from tessera.common.towers.transformer import SIDE, ImageTower, TextTower, Tower, TowerSize, words
from tessera.common.utils.atomic_files import file_digest, read_tensors, write_tensors
from tessera.common.utils.torch_device import resolve_device

KINDS: dict[str, type[ImageTower] | type[TextTower]] = {"image": ImageTower, "text": TextTower}


class TowerEncoder:
    """The image and the text tower of a device class."""

    def __init__(self, towers: Path, model: str, device: str = "auto") -> None:
        """Load the two towers of the device class `model` below `towers`. Raises `DataError` that names the file."""
        files = {kind: encoder_path(towers, model, kind) for kind in KINDS}
        self._device = resolve_device(device)
        self._towers = {kind: load_encoder(path, kind).to(self._device) for kind, path in files.items()}
        self.weights: Mapping[str, str] = {kind: file_digest(path) for kind, path in files.items()}
        self.image_name, self.text_name = (f"tower:{model}:{self.weights[kind][:12]}" for kind in KINDS)

    def encode_images(self, paths: Sequence[Path]) -> Vectors:
        """The image tower's vectors of pictures, [n, TOWER_DIM]."""
        return self._encode("image", (torch.stack([pixels(path) for path in chunk]) for chunk in chunks(paths)))

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """The text tower's vectors of texts, [n, TOWER_DIM]."""
        return self._encode("text", (words(chunk) for chunk in chunks(texts)))

    def _encode(self, kind: str, batches: Iterator[Tensor]) -> Vectors:
        with torch.inference_mode():
            encoded = [self._towers[kind](batch.to(self._device)).cpu() for batch in batches]
        vectors: Vectors = torch.cat([torch.zeros(0, TOWER_DIM), *encoded]).numpy()
        return vectors


def pixels(path: Path) -> Tensor:
    """A picture as an image tower takes it, whatever its shape was, [3, SIDE, SIDE] in 0 to 1."""
    image = open_picture(path)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(image).astype(np.float32) / 255).permute(2, 0, 1)


def encoder_path(towers: Path, device_class: str, kind: str) -> Path:
    """Where the tower of a device class lies that reads pictures ("image") or texts ("text")."""
    return towers / device_class / f"{kind}.safetensors"


def save_encoder(tower: ImageTower | TextTower, path: Path, about: dict[str, Any]) -> None:
    """Write a tower, atomically, with what is known `about` its fit."""
    kind = next(kind for kind, made in KINDS.items() if isinstance(tower, made))
    metadata = about | {"kind": kind, "width": tower.positions.shape[1], "depth": len(tower.layers)}
    write_tensors(path, tower.state_dict(), {"tower": json.dumps(metadata)})


def load_encoder(path: Path, kind: str) -> Tower:
    """Read a tower for pictures ("image") or texts ("text"), frozen. Raises `DataError` that names the file."""
    tensors, metadata = read_tensors(path)
    try:
        about = json.loads(metadata["tower"])
        if about["kind"] != kind:
            raise DataError(f"{path} holds a tower for {about['kind']}, not {kind}")
        tower = KINDS[kind](TowerSize(about["width"], about["depth"]))
        tower.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} holds no tower: {error}") from None
    return tower.eval().requires_grad_(requires_grad=False)
