"""Encodes pictures and texts by an open_clip model, from a checkpoint file or from weights that open_clip can fetch."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tessera.common.encoders.base import Vectors, chunks
from tessera.common.towers.open_clip import load_open_clip
from tessera.common.utils.torch_device import resolve_device


class ClipEncoder:
    """An open_clip model with pretrained weights."""

    def __init__(self, model: str, pretrained: str | None, device: str = "auto") -> None:
        """Load `model` with `pretrained`, a local checkpoint or a name that open_clip knows. Raises `DataError`."""
        self._device = resolve_device(device)
        self._loaded = load_open_clip(model, pretrained, self._device)
        self.weights: Mapping[str, str] = {"image": self._loaded.sha256, "text": self._loaded.sha256}
        self.image_name = self.text_name = self._loaded.name

    def encode_images(self, paths: Sequence[Path]) -> Vectors:
        """Unit image embeddings, [n, n_features]."""
        with ThreadPoolExecutor() as readers:
            batches = (torch.stack(list(readers.map(self._loaded.read, chunk))) for chunk in chunks(paths))
            return self._encode(self._loaded.model.encode_image, batches)

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Unit text embeddings, [n, n_features]; a text longer than the model reads is cut."""
        return self._encode(
            self._loaded.model.encode_text, (self._loaded.tokenise(list(chunk)) for chunk in chunks(texts))
        )

    def _encode(self, encode: Any, batches: Iterator[Any]) -> Vectors:
        with torch.inference_mode():
            encoded = [encode(batch.to(self._device), normalize=True).float().cpu() for batch in batches]
        vectors: Vectors = torch.cat(encoded).numpy()
        return vectors
