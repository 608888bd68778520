"""Says what an encoder of pictures and texts is, and makes a catalogue's modalities by one.

An encoder turns pictures and texts into feature vectors. A new one is a file in this folder and a line in
`tessera.common.registry.encoders`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tessera.common.data.catalogue import Features, sentences
from tessera.common.errors import DataError

Vectors = NDArray[np.float32]
Content = TypeVar("Content")
"""A picture's path or a text."""
CHUNK = 256
"""Pictures or texts that are encoded at once."""


class Encoder(Protocol):
    """Computes features. Its names are recorded beside the features: they must change when the result does; "" for a modality
    that it does not encode."""

    image_name: str
    text_name: str
    weights: Mapping[str, str]
    """SHA-256 of the file of weights behind each modality; empty where nothing is learnt."""

    def encode_images(self, paths: Sequence[Path]) -> Vectors:
        """Features of pictures, [n, n_features]. Raises `DataError` that names an unreadable file."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Vectors:
        """Features of texts, [n, n_features]."""
        ...


def encode_images(encoder: Encoder, images: Sequence[str], folder: Path) -> Features:
    """The modality "image" of items whose pictures lie at `images` below `folder`; "" where an item has none."""
    present = np.array([bool(image) for image in images], dtype=bool)
    encoded = encoder.encode_images([folder / image for image in images if image])
    return Features(_spread(encoded, present), present, encoder.image_name)


def encode_texts(encoder: Encoder, titles: Sequence[str], texts: Sequence[str]) -> Features:
    """The modality "text" of items, see `sentences`."""
    joined = sentences(titles, texts)
    present = np.array([bool(text) for text in joined], dtype=bool)
    return Features(
        _spread(encoder.encode_texts([text for text in joined if text]), present), present, encoder.text_name
    )


def _spread(encoded: Vectors, present: NDArray[np.bool_]) -> Vectors:
    """Rows for all items, zero where nothing was encoded."""
    values = np.zeros((len(present), encoded.shape[1]), dtype=np.float32)
    values[present] = encoded
    return values


def chunks(contents: Sequence[Content]) -> Iterator[Sequence[Content]]:
    """As many of `contents` at a time as fit into memory."""
    return (contents[start : start + CHUNK] for start in range(0, len(contents), CHUNK))


def open_picture(path: Path) -> Image.Image:
    """A picture in RGB. Raises `DataError` that names the file."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise DataError(f"picture {path} does not exist") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"picture {path} cannot be read: {error}") from None
