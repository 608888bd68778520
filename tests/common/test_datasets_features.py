"""The encoder that is built in, and encoding while converting."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.common.data.catalogue import load_catalogue
from tessera.common.datasets import Options, convert
from tessera.common.datasets.demo_shop_images import COLOURS, LAYOUTS, PATTERNS, SHAPES, Appearance, render
from tessera.common.encoders.builtin import GREYS, HUES, BuiltinEncoder
from tessera.common.encoders.clip import ClipEncoder
from tessera.common.errors import DataError

ENCODER = BuiltinEncoder()


def picture(folder: Path, name: str, appearance: Appearance, seed: int) -> Path:
    path = folder / f"{name}-{seed}.png"
    render(appearance, np.random.default_rng(seed)).save(path)
    return path


@pytest.mark.parametrize("part", ["colour", "shape", "pattern", "layout"])
def test_pictures_are_nearer_when_they_share_a_part(tmp_path: Path, part: str) -> None:
    rng = np.random.default_rng(1)
    parts = {"colour": COLOURS, "shape": list(SHAPES), "pattern": PATTERNS, "layout": list(LAYOUTS)}
    appearances = [Appearance(**{name: str(rng.choice(values)) for name, values in parts.items()}) for _ in range(150)]
    paths = [picture(tmp_path, "appearance", appearance, seed) for seed, appearance in enumerate(appearances)]
    features = ENCODER.encode_images(paths)
    features = features - features.mean(axis=0)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    value = np.array([getattr(appearance, part) for appearance in appearances])
    same = (value[:, None] == value) & ~np.eye(len(appearances), dtype=bool)
    similar = features @ features.T
    assert similar[same].mean() > similar[value[:, None] != value].mean() + 0.02


def test_pictures_of_any_size_and_mode_are_encoded(tmp_path: Path) -> None:
    Image.new("L", (200, 30), 128).save(tmp_path / "grey.png")
    Image.new("RGBA", (5, 90), (255, 0, 0, 128)).save(tmp_path / "red.png")
    features = ENCODER.encode_images([tmp_path / "grey.png", tmp_path / "red.png"])
    assert features.dtype == np.float32
    assert features.shape == (2, ENCODER.encode_images([]).shape[1])
    assert np.isfinite(features).all()


def test_a_picture_has_the_same_features_in_any_batch(tmp_path: Path) -> None:
    appearance = Appearance("red", "star", "dots", "pair")
    paths = [picture(tmp_path, "appearance", appearance, seed) for seed in range(3)]
    together = ENCODER.encode_images(paths)
    np.testing.assert_array_equal(together, np.concatenate([ENCODER.encode_images([path]) for path in paths]))


@pytest.mark.parametrize("content", [None, b"", b"not a picture"])
def test_unreadable_pictures_are_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad.png"):
        ENCODER.encode_images([tmp_path / "bad.png"])


def test_a_plain_picture_is_its_colour_and_has_no_edges(tmp_path: Path) -> None:
    """Datasets record the encoder's name: when this fails, give the encoder a new one."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (features,) = ENCODER.encode_images([tmp_path / "red.png"])
    colour, n_bins = (255 / 256) ** 2, HUES + GREYS
    whole, rest = features[:n_bins], features[n_bins:]
    expected = np.zeros(n_bins)
    expected[0], expected[-1] = np.sqrt(colour), np.sqrt(1 - colour)
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    np.testing.assert_allclose(rest[: 4 * n_bins], np.tile(expected / 2, 4), atol=1e-6)
    assert not rest[4 * n_bins :].any()


def test_texts_are_near_when_they_share_words() -> None:
    tea, leaf, cup, none = ENCODER.encode_texts(["Green tea, loose", "loose GREEN leaves", "stoneware cup", ""])
    assert tea @ leaf > tea @ cup + 0.2
    assert abs(tea @ cup) < 0.2
    assert not none.any()
    assert np.linalg.norm(tea) == pytest.approx(1)


def test_text_features_do_not_change_between_versions() -> None:
    """Datasets record the encoder's name: when this fails, give the encoder a new one."""
    (vector,) = ENCODER.encode_texts(["Green tea"])
    np.testing.assert_allclose(vector[:4] / vector[0], [1, -5, -5, 3], atol=1e-5)


def test_converting_encodes_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "events.csv").write_text("user,item\nu,a\nu,b\n")
    (tmp_path / "in" / "items.csv").write_text("item,title,image\na,Tea,\nb,,b.png\n")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "in" / "b.png")
    about = convert("table", tmp_path / "in", tmp_path / "out", Options(0, 0, encode=ENCODER))
    assert about["features"]["image"]["encoder"] == "colour-and-gradient-histograms-v1"
    assert about["features"]["text"]["encoder"] == "hashed-ngrams-v1"
    features = load_catalogue(tmp_path / "out").features
    assert (features["text"].present.tolist(), features["image"].present.tolist()) == ([True, False], [False, True])


def test_clip_says_what_it_lacks() -> None:
    with pytest.raises(DataError, match="--pretrained"):
        ClipEncoder("ViT-B-32", None)
