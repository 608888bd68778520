"""What every converter of raw data and every encoder of pictures and texts must fulfil."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tessera.common.datasets import Options
from tessera.common.encoders import Encoder, make_encoder
from tessera.common.encoders.base import Vectors
from tessera.common.errors import DataError
from tessera.common.registry.converters import CONVERTERS, unused_option
from tessera.common.registry.registry import resolve

TEXTS = ["A blue vase.", "", "vase " * 500, "Ünïcode, 漢字 and 12"]


class ConverterContract:
    """Inherit it, and name a kind of raw data of the registry."""

    name: str

    def test_it_can_be_called_and_owns_options_that_there_are(self) -> None:
        """Others are refused with their names."""
        spec, options = CONVERTERS[self.name], {option.name for option in fields(Options)}
        assert spec.help
        assert set(spec.options) <= options
        inspect.signature(resolve(spec.implementation)).bind(*[None] * (3 if spec.writes else 2))
        assert not unused_option(self.name, spec.options)
        for other in options - set(spec.options):
            assert f"{other} has no effect on data of the kind {self.name}" in unused_option(self.name, [other])


class EncoderContract:
    """Inherit it, and name an encoder of the registry; one that needs a folder or weights also says how it is made."""

    name: str

    def make(self, folder: Path) -> Encoder:
        """The encoder; `folder` is empty and its own."""
        return make_encoder(self.name)

    def test_it_gives_one_finite_row_for_each_picture_and_text_whatever_else_is_encoded(self, tmp_path: Path) -> None:
        """In single precision; an empty list gives no rows, of the same width. What it has no name for, it refuses."""
        encoder = self.make(tmp_path / "own")
        paths = [tmp_path / f"{number}.png" for number in range(3)]
        for path, size in zip(paths, ((64, 64), (7, 90), (1, 1)), strict=True):
            Image.new("RGB", size, "teal").save(path)
        assert encoder.image_name or encoder.text_name
        work: tuple[tuple[str, Callable[[Sequence[Any]], Vectors], Sequence[Any]], ...] = (
            (encoder.image_name, encoder.encode_images, paths),
            (encoder.text_name, encoder.encode_texts, TEXTS),
        )
        for named, encode, contents in work:
            if named:
                _check(encode, contents)
            else:
                with pytest.raises(DataError):
                    encode(contents)

    def test_it_names_the_picture_that_it_cannot_read(self, tmp_path: Path) -> None:
        """Of thousands, it is the one to look at."""
        (tmp_path / "broken.png").write_bytes(b"no picture")
        encoder = self.make(tmp_path / "own")
        with pytest.raises(DataError, match=r"broken\.png"):
            encoder.encode_images([tmp_path / "broken.png"])


def _check(encode: Callable[[Sequence[Any]], Vectors], contents: Sequence[Any]) -> None:
    rows = encode(contents)
    assert len(rows) == len(contents)
    assert rows.dtype == np.dtype(np.float32)
    assert np.isfinite(rows).all()
    for row, content in zip(rows, contents, strict=True):
        np.testing.assert_allclose(encode([content])[0], row, atol=1e-4)
    assert encode([]).shape == (0, rows.shape[1])
