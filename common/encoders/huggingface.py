"""Encodes texts by a pretrained text encoder of Hugging Face's transformers, with the states of its layers where asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.common.encoders.base import Vectors, chunks
from tessera.common.errors import DataError
from tessera.common.registry.encoders import HUGGING_FACE_PREFIX
from tessera.common.towers.pretrained import load_text_tower
from tessera.common.utils.torch_device import resolve_device

TOKENS = 128
"""Tokens of a text that are read; what follows is cut."""


class HuggingFaceEncoder:
    """A model by a local folder, or by its name on the hub. It encodes texts only."""

    image_name = ""

    def __init__(self, model: str, device: str = "auto") -> None:
        """Load the model. Raises `DataError`."""
        self._device = resolve_device(device)
        self._tower = load_text_tower(model.removeprefix(HUGGING_FACE_PREFIX), self._device)
        self.text_name = self._tower.name
        self.weights: Mapping[str, str] = {"text": self._tower.name.rsplit(":", 1)[-1]}

    def encode_images(self, paths: Sequence[Path]) -> Vectors:
        """It has no eyes. Raises `DataError`."""
        raise DataError(f"{self.text_name} encodes texts alone, not {paths[0] if paths else 'pictures'}")

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, [n, width]."""
        found = [self._run(chunk, states=False) for chunk in chunks(texts)]
        return np.concatenate(found) if found else np.zeros((0, self._tower.width), dtype=np.float32)

    def encode_text_states(self, texts: Sequence[str]) -> Vectors:
        """What each layer holds of the texts, [n, 1 + n_layers, width]."""
        return np.concatenate([self._run(chunk, states=True) for chunk in chunks(texts)])

    def _run(self, texts: Sequence[str], states: bool) -> NDArray[np.float32]:
        tokens = self._tower.tokens(texts, TOKENS).to(self._device)
        with torch.inference_mode():
            found = self._tower.states(tokens) if states else self._tower(tokens)
        encoded: NDArray[np.float32] = found.float().cpu().numpy()
        return encoded
