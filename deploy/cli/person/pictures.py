"""Draws a picture with letters of the terminal: each shows two pixels, one above the other."""

from pathlib import Path

from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from tessera.common.data.pictures import open_picture
from tessera.common.errors import DataError

COLUMNS, ROWS = 12, 6


def drawn(console: Console, path: Path | None) -> Text:
    """The picture in a file; empty where there is none. Raises `DataError` where `console` cannot show it, or it is damaged."""
    if not console.is_terminal or console.no_color or console.color_system in (None, "standard"):
        raise DataError("--pictures: pictures are drawn on a terminal with 256 colours or more alone")
    return draw(open_picture(path)) if path else Text()


def draw(picture: Image.Image) -> Text:
    """A picture as COLUMNS letters in each of ROWS lines."""
    small = picture.convert("RGB").resize((COLUMNS, 2 * ROWS), Image.Resampling.BOX)
    found = Text()
    for row in range(ROWS):
        for column in range(COLUMNS):
            above, below = (small.getpixel((column, 2 * row + half)) for half in (0, 1))
            found.append("▀", Style(color=_colour(above), bgcolor=_colour(below)))
        found.append("\n" if row < ROWS - 1 else "")
    return found


def _colour(pixel: object) -> Color:
    assert isinstance(pixel, tuple)
    return Color.from_rgb(*pixel)
