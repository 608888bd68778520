"""Reads pictures as people see them, whatever they are stored as, and finds them in folders.

Upright, in 8 bits a channel of sRGB, without transparency, the first frame of an animation: encoders see nothing else. Stored
as they may be turned, of 1 to 32 bits, whole numbers or not, of a palette, in CMYK or in another colour space.
"""

import warnings
from collections import Counter
from functools import cache
from io import BytesIO
from pathlib import Path, PureWindowsPath

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms

from tessera.common.errors import DataError

TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How a picture is turned upright, by the orientation that EXIF gives it; 1 is upright."""
DEPTHS = (255, 2**16 - 1, 2**32 - 1)
"""What white may be in whole numbers."""
SMALL_SIDE = 160
"""Pixels a side that a small picture has at most."""
PROFILED = {"RGB", "CMYK", "LAB", "L"}
"""Modes whose colours a profile may describe."""


def open_picture(path: Path) -> Image.Image:
    """A picture in RGB, as people see it. Raises `DataError` that names the file, whatever is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as of a large picture, which is read all the same
            with Image.open(path) as image:
                return _upright(image, _on_white(_in_srgb(_in_8_bits(image))))
    except FileNotFoundError:
        raise DataError(f"picture {path} does not exist") from None
    except Exception as error:  # a decoder raises whatever its bytes led it to
        raise DataError(f"picture {path} cannot be read: {str(error) or type(error).__name__}") from None


def small_picture(path: Path, most: int) -> bytes:
    """A picture as a JPEG of at most `SMALL_SIDE` pixels a side and `most` bytes, of its pixels alone.

    Raises `DataError`.
    """
    picture = open_picture(path)
    for side in (SMALL_SIDE, SMALL_SIDE // 2, SMALL_SIDE // 4):
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in (80, 50, 20):
            content = BytesIO()
            picture.save(content, "JPEG", quality=quality)
            if content.tell() <= most:
                return content.getvalue()
    raise DataError(f"picture {path} does not fit into {most} bytes")


def require_small(content: bytes, most: int, called: str) -> None:
    """Raise `DataError` unless bytes from elsewhere are such a picture: short, a JPEG, small, and readable to its end."""
    try:
        with Image.open(BytesIO(content), formats=["JPEG"]) as picture:
            if len(content) <= most and max(picture.size) <= SMALL_SIDE:
                picture.load()
                return
    except Exception:  # a decoder raises whatever its bytes led it to
        pass
    raise DataError(f"{called} is no small picture")


def picture_path(folder: Path, item: str, picture: str) -> Path | None:
    """Where a picture lies that is called `picture` in data below `folder`: anywhere, by a path of any system; None for "".

    Raises `DataError` for an address of the web.
    """
    if not picture:
        return None
    if "://" in picture:
        raise DataError(f"item {item!r} has its picture at {picture}: download it first, and name its file")
    path = folder / Path(picture).expanduser()
    other = folder / PureWindowsPath(picture).as_posix()
    return other if not path.exists() and other.exists() else path


def pictures_in(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The file names of a folder's pictures by their stems, and what to say about files that are passed over because nothing
    here can read them.

    Raises `DataError` for two pictures of one name.
    """
    found: dict[str, str] = {}
    passed: Counter[str] = Counter()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix.lower() not in _suffixes():
            passed[path.suffix.lower() or path.name] += 1
        elif path.stem in found:
            raise DataError(
                f"{folder} has two pictures of {path.stem!r}, {found[path.stem]} and {path.name}: leave one"
            )
        else:
            found[path.stem] = path.name
    kinds = ", ".join(sorted(passed))
    rule = f"files in {folder.name}/ that are no pictures, or of a kind that cannot be read ({kinds}): {passed.total()}"
    return found, [rule] if passed else []


@cache
def _suffixes() -> frozenset[str]:
    """Suffixes of the formats that can be read."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN)


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey pictures of more than 8 bits scaled to 8; all others as they are.

    What white is says the file, for 16 bits, and otherwise the smallest usual range that holds all values: to 1 (floating
    point), 255, 2^16 - 1 or 2^32 - 1.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;"):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
    sixteen = image.mode != "F" and (image.mode != "I" or image.format == "PNG")
    usual = DEPTHS[1:2] if sixteen else (1, *DEPTHS) if image.mode == "F" else DEPTHS
    white = next((depth for depth in usual if values.max(initial=0) <= depth), values.max(initial=1))
    clear = image.info.get("transparency")
    scaled: NDArray[np.uint8] = np.rint(values.clip(0) * (255 / white)).astype(np.uint8)
    if isinstance(clear, int):
        opaque = np.where(values == clear, 0, 255).astype(np.uint8)
        return Image.merge("LA", (Image.fromarray(scaled), Image.fromarray(opaque)))
    return Image.fromarray(scaled)


def _in_srgb(image: Image.Image) -> Image.Image:
    """Colours as sRGB, by the picture's own profile where it has one that fits; transparency as it was."""
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.has_transparency_data and "A" not in image.mode and "a" not in image.mode:
        image = image.convert("RGBA")  # one colour is marked as clear
    elif image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.replace("a", "A"))
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA", "PA") else None
    colours = image.convert({"LA": "L", "PA": "RGB", "RGBA": "RGB"}.get(image.mode, image.mode))
    shown = _by_profile(colours, image.info.get("icc_profile")) or colours.convert("RGB")
    if alpha is not None:
        shown.putalpha(alpha)
    return shown


def _by_profile(image: Image.Image, icc: bytes | None) -> Image.Image | None:
    """The picture in sRGB by a colour profile; None where there is none, it says sRGB, or it is damaged or of other colours."""
    if image.mode == "LAB":
        icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    if not icc or image.mode not in PROFILED:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(icc))
        if image.mode == "RGB" and "srgb" in ImageCms.getProfileDescription(profile).lower():
            return None
        intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.profileToProfile(image, profile, _srgb(), intent, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _on_white(image: Image.Image) -> Image.Image:
    """What shows of a picture with transparency on a white page."""
    if image.mode != "RGBA":
        return image
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    return page.convert("RGB")


def _upright(stored: Image.Image, image: Image.Image) -> Image.Image:
    """Turn a picture as the EXIF data of what was `stored` say; damaged ones say nothing."""
    try:
        turn = TURNED.get(stored.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # whatever a reader of tags makes of them: the picture itself was read
        turn = None
    return image if turn is None else image.transpose(turn)
