"""Encodes pictures by colour and edge histograms and texts by hashed words: no download, no GPU, nothing learnt.

It tells colours, edges and words apart, not meaning: enough for the demo shop and for trying out a catalogue of one's own.
For real content use an open_clip model, see `tessera.common.encoders.clip`.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tessera.common.data.pictures import open_picture
from tessera.common.encoders.base import Vectors, chunks

SIDE = 64
"""Pictures are scaled to this many pixels a side before the histograms are taken."""
CELLS = 4
HUES, GREYS, ORIENTATIONS = 12, 4, 8
IMAGE_DIM = (HUES + GREYS) * (1 + 2 * 2) + ORIENTATIONS * (1 + CELLS * CELLS)
TEXT_DIM = 256


class BuiltinEncoder:
    """Colour and gradient histograms of pictures; hashed n-grams of texts. Nothing is learnt or drawn."""

    image_name = "colour-and-gradient-histograms-v1"
    text_name = "hashed-ngrams-v1"
    weights: Mapping[str, str] = {}

    def encode_images(self, paths: Sequence[Path]) -> Vectors:
        """Histograms of hues, greys and edge directions, each over the whole picture and over a grid, [n, 216]."""
        encoded = [_histograms(np.stack([_pixels(path) for path in chunk])) for chunk in chunks(paths)]
        return np.concatenate([np.zeros((0, IMAGE_DIM), dtype=np.float32), *encoded])

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Words, pairs of words and runs of four letters, hashed to signs and added up, unit norm, [n, 256]."""
        cache: dict[str, Vectors] = {}
        vectors = np.zeros((len(texts), TEXT_DIM), dtype=np.float32)
        for row, text in enumerate(texts):
            counts: dict[str, int] = {}
            for gram in _grams(text):
                counts[gram] = counts.get(gram, 0) + 1
            for gram, count in counts.items():
                if gram not in cache:
                    cache[gram] = _signs(gram)
                vectors[row] += (1 + np.log(count)) * cache[gram]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors


def _pixels(path: Path) -> NDArray[np.uint8]:
    """A picture as hue, saturation, value, [SIDE, SIDE, 3]."""
    image = open_picture(path)
    if image.size != (SIDE, SIDE):
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image.convert("HSV"))


def _histograms(pixels: NDArray[Any]) -> Vectors:
    """Square roots of normalised histograms of a batch of pictures, [n, SIDE, SIDE, 3] to [n, n_features]."""
    hue, saturation, value = np.moveaxis(pixels.astype(np.float32) / 256, -1, 0)
    colourful = saturation * value
    hues = _by_cell((hue * HUES).astype(np.int64), colourful, HUES)
    greys = _by_cell((value * GREYS).astype(np.int64), 1 - colourful, GREYS)
    down, right = np.gradient(value, axis=(1, 2))
    direction = (np.arctan2(down, right) / np.pi % 1 * ORIENTATIONS).astype(np.int64) % ORIENTATIONS
    edges = _by_cell(direction, np.hypot(down, right), ORIENTATIONS)
    colours = np.concatenate([hues, greys], axis=-1)
    halves = colours.reshape(len(colours), 2, CELLS // 2, 2, CELLS // 2, -1).sum(axis=(2, 4))
    blocks = [colours.sum(axis=(1, 2)), halves, edges.sum(axis=(1, 2)), edges]
    return np.concatenate([_normalised(block.reshape(len(block), -1)) for block in blocks], axis=1)


def _by_cell(bins: NDArray[np.int64], weights: NDArray[np.float32], n_bins: int) -> Vectors:
    """Weighted histograms of each cell, [n, SIDE, SIDE] to [n, CELLS, CELLS, n_bins]."""
    n = len(bins)
    cell = np.arange(SIDE) * CELLS // SIDE
    where = (np.arange(n)[:, None, None] * CELLS + cell[:, None]) * CELLS + cell
    flat = np.bincount((where * n_bins + bins).ravel(), weights.ravel(), n * CELLS * CELLS * n_bins)
    return flat.reshape(n, CELLS, CELLS, n_bins).astype(np.float32)


def _normalised(block: Vectors) -> Vectors:
    """The root of each row's shares, so that rows have unit norm and rare bins are heard."""
    roots: Vectors = np.sqrt(block / np.maximum(block.sum(axis=1, keepdims=True), 1e-12))
    return roots


def _grams(text: str) -> Iterator[str]:
    """Words, pairs of neighbouring words, and runs of four letters within a word."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()
    yield from words
    yield from (f"{first} {second}" for first, second in pairwise(words))
    for word in words:
        yield from (f"#{f'^{word}$'[start : start + 4]}" for start in range(len(word) - 1))


def _signs(gram: str) -> Vectors:
    """A fixed random direction for a gram: the bits of its hash as signs, [TEXT_DIM]."""
    bits = np.unpackbits(np.frombuffer(blake2b(gram.encode(), digest_size=TEXT_DIM // 8).digest(), dtype=np.uint8))
    return bits.astype(np.float32) * 2 - 1
