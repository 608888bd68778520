"""What every converter and every encoder in the registries must fulfil, those of installed packages too."""

import inspect
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.common.datasets import Options
from tessera.common.encoders import Encoder, make_encoder
from tessera.common.encoders.towers import KINDS, encoder_path, save_encoder
from tessera.common.errors import DataError
from tessera.common.registry.converters import CONVERTERS, unused_option
from tessera.common.registry.encoders import ENCODERS, OPEN_CLIP
from tessera.common.registry.registry import resolve
from tessera.common.towers.transformer import SIZES

OPTIONS = {option.name for option in fields(Options)}
TEXTS = ["A blue vase.", "", "vase " * 500, "Ünïcode, 漢字 and 12"]


@pytest.mark.parametrize("kind", CONVERTERS)
def test_a_converter_can_be_called_and_owns_options_that_there_are(kind: str) -> None:
    spec = CONVERTERS[kind]
    assert spec.help
    assert set(spec.options) <= OPTIONS
    inspect.signature(resolve(spec.implementation)).bind(*[None] * (3 if spec.writes else 2))
    assert not unused_option(kind, spec.options)
    for other in OPTIONS - set(spec.options):
        assert f"{other} has no effect on data of the kind {kind}" in unused_option(kind, [other])


@pytest.fixture(params=[name for name in ENCODERS if name != OPEN_CLIP])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    name: str = request.param
    if "towers" not in ENCODERS[name].options:
        return make_encoder(name)
    for kind, tower in KINDS.items():
        save_encoder(tower(SIZES[name]), encoder_path(tmp_path, name, kind), {})
    return make_encoder(name, towers=tmp_path, device="cpu")


def test_an_encoder_gives_one_finite_row_for_each_picture_and_text_whatever_else_is_encoded(
    encoder: Encoder, tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, size in zip(paths, ((64, 64), (7, 90), (1, 1)), strict=True):
        Image.new("RGB", size, "teal").save(path)
    for encode, contents in ((encoder.encode_images, paths), (encoder.encode_texts, TEXTS)):
        rows = encode(contents)
        assert (len(rows), rows.dtype) == (len(contents), np.float32)
        assert np.isfinite(rows).all()
        for row, content in zip(rows, contents, strict=True):
            np.testing.assert_allclose(encode([content])[0], row, atol=1e-4)
        assert encode([]).shape == (0, rows.shape[1])
    assert encoder.image_name
    assert encoder.text_name


def test_an_encoder_names_the_picture_that_it_cannot_read(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        encoder.encode_images([tmp_path / "broken.png"])
