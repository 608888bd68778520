"""Says what an encoder of pictures and texts is, and makes a catalogue's modalities by one.

An encoder turns pictures and texts into feature vectors. A new one is a file in this folder and a line in
`tessera.common.registry.encoders`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tessera.common.data.catalogue import Features, sentences
from tessera.common.data.pictures import open_picture
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


def encode_images(
    encoder: Encoder, items: Sequence[str], paths: Sequence[Path | None], skip_unreadable: bool = False
) -> Features:
    """The modality "image" of `items` whose pictures lie at `paths`; None where an item has none.

    Raises `DataError` that names item and file of a picture that cannot be read, unless such count as missing.
    """
    there = [row for row, path in enumerate(paths) if path is not None]
    read, encoded = encode_readable(encoder.encode_images, items, paths, there, skip_unreadable)
    present = np.zeros(len(items), dtype=bool)
    present[read] = True
    return Features(_spread(encoded, present), present, encoder.image_name)


def encode_texts(encoder: Encoder, titles: Sequence[str], texts: Sequence[str]) -> Features:
    """The modality "text" of items, see `sentences`."""
    joined = sentences(titles, texts)
    present = np.array([bool(text) for text in joined], dtype=bool)
    return Features(
        _spread(encoder.encode_texts([text for text in joined if text]), present), present, encoder.text_name
    )


def encode_readable(
    encode: Callable[[Sequence[Any]], Vectors],
    items: Sequence[str],
    contents: Sequence[Path | str | None],
    rows: Sequence[int],
    skip_unreadable: bool,
) -> tuple[list[int], Vectors]:
    """Encode the contents of some rows: those that can be read, and their vectors, [n_read, n_features].

    Raises `DataError` that names item and file of a picture that cannot be read, unless such are left out.
    """
    try:
        return list(rows), encode([contents[row] for row in rows])
    except DataError:
        errors = {row: error for row in rows if (error := why_unreadable(contents[row]))}
        if not errors:
            raise
        if not skip_unreadable:
            row, error = next(iter(errors.items()))
            raise DataError(f"item {items[row]!r}: {error}; with --skip-unreadable it counts as missing") from None
    readable = [row for row in rows if row not in errors]
    return readable, encode([contents[row] for row in readable]) if readable else np.zeros((0, 0), dtype=np.float32)


def why_unreadable(content: Path | str | None) -> str:
    """Say what is wrong with a picture; nothing where it can be read, or is a text."""
    try:
        if isinstance(content, Path):
            open_picture(content)
    except DataError as error:
        return str(error)
    return ""


def _spread(encoded: Vectors, present: NDArray[np.bool_]) -> Vectors:
    """Rows for all items, zero where nothing was encoded."""
    values = np.zeros((len(present), encoded.shape[1]), dtype=np.float32)
    values[present] = encoded
    return values


def chunks(contents: Sequence[Content]) -> Iterator[Sequence[Content]]:
    """As many of `contents` at a time as fit into memory."""
    return (contents[start : start + CHUNK] for start in range(0, len(contents), CHUNK))
