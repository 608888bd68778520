"""Encodes texts, or pictures, by a pretrained encoder of Hugging Face's transformers, with the states of its layers where asked
for."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.common.encoders.base import Vectors, chunks
from tessera.common.errors import DataError
from tessera.common.registry.encoders import HUGGING_FACE_PREFIX
from tessera.common.towers.pretrained import load_tower
from tessera.common.utils.torch_device import resolve_device

TOKENS = 128
"""Tokens of a text that are read; what follows is cut."""


class HuggingFaceEncoder:
    """A model by a local folder, or by its name on the hub. It encodes texts or pictures, whichever it reads."""

    def __init__(self, model: str, device: str = "auto") -> None:
        """Load the model. Raises `DataError`."""
        self._device = resolve_device(device)
        self._tower = load_tower(model.removeprefix(HUGGING_FACE_PREFIX)).to(self._device)
        self.image_name, self.text_name = (
            self._tower.name if self._tower.reads == kind else "" for kind in ("image", "text")
        )
        self.weights: Mapping[str, str] = {self._tower.reads: self._tower.name.rsplit(":", 1)[-1]}

    def encode_images(self, paths: Sequence[Path]) -> Vectors:
        """Unit vectors, [n, width]. Raises `DataError` for an encoder of texts."""
        if self._tower.reads != "image":
            raise DataError(f"{self._tower.name} encodes texts alone, not {paths[0] if paths else 'pictures'}")
        return self._encoded(paths)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, [n, width]. Raises `DataError` for an encoder of pictures."""
        if self._tower.reads != "text":
            raise DataError(f"{self._tower.name} encodes pictures alone, not texts")
        return self._encoded(texts)

    @property
    def reads(self) -> str:
        """The modality that it reads: "text" or "image"."""
        return self._tower.reads

    def encode_states(self, contents: Sequence[Any]) -> Vectors:
        """What each layer holds of texts, or pictures, [n, 1 + n_layers, width]. Raises `DataError` where that has no such
        form."""
        return np.concatenate([self._run(self._tower.states, chunk) for chunk in chunks(contents)])

    def _encoded(self, contents: Sequence[Any]) -> Vectors:
        found = [self._run(self._tower, chunk) for chunk in chunks(contents)]
        return np.concatenate(found) if found else np.zeros((0, self._tower.width), dtype=np.float32)

    def _run(self, encode: Callable[[Any], Tensor], contents: Sequence[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = encode(self._tower.inputs(contents, TOKENS).to(self._device))
        encoded: NDArray[np.float32] = found.float().cpu().numpy()
        return encoded
