"""Draws the demo shop's pictures: a motif with a shape, a colour, a pattern and a layout, drawn on a pale ground."""

import colorsys
from dataclasses import dataclass
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 64
SCALE = 2
"""Pictures are drawn this much larger and scaled down, for smooth edges."""

Point = tuple[float, float]
Colour = tuple[int, int, int]


def _polygon(n_corners: int, turn: float = 0.0, inner: float | None = None) -> list[Point]:
    """A regular polygon of radius 1, or a star whose inner corners lie at `inner`."""
    steps = n_corners if inner is None else 2 * n_corners
    radii = [1.0 if inner is None or step % 2 == 0 else inner for step in range(steps)]
    angles = [2 * pi * (step / steps + turn) - pi / 2 for step in range(steps)]
    return [(radius * cos(angle), radius * sin(angle)) for radius, angle in zip(radii, angles, strict=True)]


def _heart() -> list[Point]:
    turns = [2 * pi * step / 40 for step in range(40)]
    waves = [13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t) for t in turns]
    return [(sin(t) ** 3, -wave / 16) for t, wave in zip(turns, waves, strict=True)]


def _cross() -> list[Point]:
    corners, arm = [], [(0.36, -1.0), (0.36, -0.36), (1.0, -0.36)]
    for _ in range(4):
        corners += arm
        arm = [(-y, x) for x, y in arm]
    return corners


SHAPES: dict[str, list[Point]] = {
    "circle": _polygon(40),
    "square": _polygon(4, 0.125),
    "triangle": _polygon(3),
    "diamond": [(0.0, -1.0), (0.62, 0.0), (0.0, 1.0), (-0.62, 0.0)],
    "star": _polygon(5, inner=0.42),
    "heart": _heart(),
    "cross": _cross(),
    "burst": _polygon(12, inner=0.7),
}
HUES = {
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.15,
    "green": 0.33,
    "teal": 0.48,
    "blue": 0.6,
    "violet": 0.75,
    "pink": 0.9,
}
COLOURS = (*HUES, "grey")
PATTERNS = ("plain", "stripes", "bands", "dots", "checks", "diagonals")
LAYOUTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "single": ((0.5, 0.5, 0.4),),
    "pair": ((0.28, 0.36, 0.24), (0.72, 0.64, 0.24)),
    "grid": tuple((x, y, 0.21) for x in (0.27, 0.73) for y in (0.27, 0.73)),
    "corner": ((0.36, 0.62, 0.3), (0.8, 0.22, 0.12)),
}
"""Where the motifs stand: centre and radius as shares of the side."""


@dataclass(frozen=True)
class Appearance:
    """What a picture shows."""

    colour: str
    shape: str
    pattern: str
    layout: str


def render(appearance: Appearance, rng: np.random.Generator) -> Image.Image:
    """Draw an appearance at SIDE x SIDE pixels, with a little jitter of hue, place, size and tilt from `rng`."""
    side = SIDE * SCALE
    jitter = rng.uniform(-1, 1, 8)
    light, dark = _tones(appearance.colour, jitter[:2])
    ground = tuple(round(255 * c) for c in colorsys.hsv_to_rgb((1 + jitter[2]) / 2, 0.06, 0.93 + 0.05 * jitter[3]))
    picture = Image.new("RGB", (side, side), ground)
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    tilt = 0.15 * jitter[4]
    for x, y, radius in LAYOUTS[appearance.layout]:
        centre = (side * (x + 0.03 * jitter[5]), side * (y + 0.03 * jitter[6]))
        draw.polygon(_placed(SHAPES[appearance.shape], centre, side * radius * (1 + 0.1 * jitter[7]), tilt), fill=255)
    picture.paste(_cloth(appearance.pattern, light, dark, side), mask=mask)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _tones(colour: str, jitter: NDArray[np.float64]) -> tuple[Colour, Colour]:
    """A lighter and a darker tone of a colour."""
    hue, saturation = (HUES[colour] + 0.015 * jitter[0], 0.75) if colour in HUES else (0.0, 0.0)
    values = (0.88 + 0.06 * jitter[1], 0.5 + 0.06 * jitter[1])
    light, dark = ([round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value)] for value in values)
    return (light[0], light[1], light[2]), (dark[0], dark[1], dark[2])


def _placed(shape: list[Point], centre: Point, radius: float, tilt: float) -> list[Point]:
    """A shape at its place in the picture, in pixels."""
    return [
        (centre[0] + radius * (x * cos(tilt) - y * sin(tilt)), centre[1] + radius * (x * sin(tilt) + y * cos(tilt)))
        for x, y in shape
    ]


def _cloth(pattern: str, light: Colour, dark: Colour, side: int) -> Image.Image:
    """The pattern in two tones, all over a square; the motif is cut out of it."""
    row, column = np.mgrid[:side, :side]
    period = 8 * SCALE
    first, second = row // (period // 2) % 2 == 0, column // (period // 2) % 2 == 0
    where = {
        "plain": np.zeros((side, side), dtype=bool),
        "stripes": second,
        "bands": first,
        "dots": (row % period - period / 2) ** 2 + (column % period - period / 2) ** 2 < (0.32 * period) ** 2,
        "checks": first ^ second,
        "diagonals": (row + column) // (period // 2) % 2 == 0,
    }[pattern]
    return Image.fromarray(np.where(where[..., None], dark, light).astype(np.uint8))
