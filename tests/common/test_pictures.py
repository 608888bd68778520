"""Pictures by one reader: the same picture is the same vector however it is stored, and what cannot be read says so."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.pictures import open_picture, pictures_in
from tessera.common.datasets import Options, convert
from tessera.common.datasets.encode import encode_dataset
from tessera.common.encoders.builtin import BuiltinEncoder
from tessera.common.errors import DataError

GREY: NDArray[np.uint8] = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1))
"""A ramp, 16 by 24."""
COLOURS = np.stack([GREY, GREY[::-1, ::-1], np.full_like(GREY, 90)], axis=-1)


def read(path: Path) -> NDArray[np.int64]:
    image = open_picture(path)
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_pictures_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = Image.fromarray(COLOURS)
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # how it is stored: the way back
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"p.{suffix}", exif=exif, quality=100)
    assert np.abs(read(tmp_path / f"p.{suffix}") - COLOURS).mean() < (1 if suffix == "png" else 12)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("8.png", GREY),
        ("16.png", GREY.astype(np.uint16) * 257),
        ("16.tif", GREY.astype(np.uint16) * 257),
        ("dark.png", np.minimum(GREY, 0).astype(np.uint16)),
        ("32.tif", (GREY.astype(np.int64) * 257).astype(np.int32)),
        ("unit.tif", (GREY / 255).astype(np.float32)),
        ("float.tif", GREY.astype(np.float32)),
    ],
)
def test_grey_is_the_same_in_any_depth(tmp_path: Path, name: str, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / name)
    expected = np.zeros_like(GREY) if name == "dark.png" else GREY
    np.testing.assert_array_equal(read(tmp_path / name), np.repeat(expected[..., None], 3, axis=2))


def test_transparency_is_on_white_however_it_is_stored(tmp_path: Path) -> None:
    clear = Image.fromarray(np.dstack([COLOURS, np.where(GREY > 100, 255, 0).astype(np.uint8)]))
    clear.save(tmp_path / "rgba.png")
    expected = np.where(GREY[..., None] > 100, COLOURS, 255)
    np.testing.assert_array_equal(read(tmp_path / "rgba.png"), expected)
    grey = Image.fromarray(GREY)
    grey.save(tmp_path / "l.png", transparency=100)
    grey.convert("P").save(tmp_path / "p.png", transparency=100)
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "16.png", transparency=100 * 257)
    Image.merge("LA", (grey, Image.fromarray(np.where(GREY == 100, 0, 255).astype(np.uint8)))).save(tmp_path / "la.png")
    for name in ("l.png", "p.png", "16.png", "la.png"):
        np.testing.assert_array_equal(read(tmp_path / name)[..., 0], np.where(GREY == 100, 255, GREY))


def test_colours_are_srgb(tmp_path: Path) -> None:
    """A palette, ink, black and white, a profile of its own, and frames of which the first counts."""
    image = Image.fromarray(COLOURS)
    image.quantize(256).save(tmp_path / "palette.gif")
    assert np.abs(read(tmp_path / "palette.gif") - COLOURS).mean() < 6
    image.convert("CMYK").save(tmp_path / "ink.tif")
    np.testing.assert_allclose(read(tmp_path / "ink.tif"), COLOURS, atol=1)
    image.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read(tmp_path / "bits.png"))) == {0, 255}
    lab = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    assert np.abs(read(tmp_path / "lab.tif") - COLOURS).mean() < 2
    image.save(tmp_path / "odd.png", icc_profile=b"no profile")
    np.testing.assert_array_equal(read(tmp_path / "odd.png"), COLOURS)
    image.save(tmp_path / "frames.webp", save_all=True, append_images=[Image.new("RGB", image.size)], lossless=True)
    np.testing.assert_array_equal(read(tmp_path / "frames.webp"), COLOURS)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def unreadable(kind: str, path: Path) -> None:
    Image.fromarray(COLOURS).save(path)
    whole = path.read_bytes()
    if kind == "long text":
        text = PngInfo()
        text.add_text("Comment", "x" * 2**21, zip=True)
        Image.fromarray(COLOURS).save(path, pnginfo=text)
    elif kind == "broken chunk":
        path.write_bytes(whole[:33] + chunk(b"tEXt", b"a")[:-4] + b"wxyz" + whole[33:])
    elif kind == "cut":
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif kind == "no picture":
        path.write_bytes(b"GIF89a")
    elif kind == "too large":
        path.write_bytes(
            whole[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + whole[33:]
        )
    else:
        path.unlink()


@pytest.mark.parametrize("kind", ["long text", "broken chunk", "cut", "no picture", "too large", "not there"])
def test_what_cannot_be_read_names_item_and_file_and_may_be_skipped(tmp_path: Path, kind: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    Image.fromarray(COLOURS).save(raw / "ok.png")
    unreadable(kind, raw / "bad.png")
    (raw / "events.csv").write_text("user,item\nu,a\nu,b\nv,a\n")
    (raw / "items.csv").write_text("item,title,image\na,one,ok.png\nb,two,bad.png\n")
    options = {"min_user_events": 0, "min_item_events": 0, "encode": BuiltinEncoder()}
    with pytest.raises(
        DataError, match=r"item 'b': picture .*bad.png (cannot be read: .|does not exist).*--skip-unreadable"
    ):
        convert("table", raw, tmp_path / "out", Options(**options))
    about = convert("table", raw, tmp_path / "out", Options(**options, skip_unreadable=True))
    assert about["rules"][-1] == "pictures that are not there or cannot be read, and count as missing: 1"
    catalogue = load_catalogue(tmp_path / "out")
    assert catalogue.features["image"].present.tolist() == [True, False]
    assert catalogue.features["text"].present.all()


@pytest.mark.parametrize("suffix", ["jpg", "JPG", "jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_pictures_of_any_suffix_are_found(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "posters").mkdir()
    for movie in (1, 2):
        Image.fromarray(COLOURS // movie).convert("L").save(tmp_path / "posters" / f"{movie}.{suffix}")
    (tmp_path / "posters" / "3.heic").write_bytes(b"")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5,1\n1,2,5,2\n1,3,5,3\n")
    (tmp_path / "movies.csv").write_text("movieId,title\n1,a\n2,b\n3,c\n")
    about = convert("movielens", tmp_path, tmp_path / "out", Options(0, 0, encode=BuiltinEncoder()))
    assert load_catalogue(tmp_path / "out").features["image"].present.tolist() == [True, True, False]
    assert about["rules"][-1] == "files in posters/ that are no pictures, or of a kind that cannot be read (.heic): 1"
    assert encode_dataset(tmp_path / "out", BuiltinEncoder(), lambda *_: lambda _: None, tmp_path / "posters")


def test_two_pictures_of_one_item_are_refused(tmp_path: Path) -> None:
    for name in ("1.jpg", "1.png"):
        Image.fromarray(GREY).save(tmp_path / name)
    with pytest.raises(DataError, match=r"two pictures of '1', 1.jpg and 1.png: leave one"):
        pictures_in(tmp_path)


def test_there_must_be_something_to_encode(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item\nu,a\n")
    with pytest.raises(DataError, match=r"there is nothing to encode in .*: no item has a title, a text or a picture"):
        convert("table", tmp_path / "events.csv", tmp_path / "out", Options(0, 0, encode=BuiltinEncoder()))
