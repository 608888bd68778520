"""How tables of items travel: in fewer bits a number, and without the items that are zero.

A table is [..., n_items, dim], and a row of it one item in one view. Formats:
- float32, float16, bfloat16: each number rounded to nearest;
- int8: whole multiples of a step that each row has of its own;
- bits1 to bits4: each row is rotated, so that its numbers look like draws from one normal distribution, and each of them is
  replaced by the nearest of 2 to 16 levels that suit this distribution best (Max 1960). The rotation is a Hadamard transform
  after random signs, and a row's scale is such that the row comes back right on average over rotations (EDEN, Vargaftik et
  al. 2022): in sums over rounds the errors cancel.

Where many items are zero, as in the gradient of a few people's events, only the others travel, with their numbers. These
say which items the people of a node have, or drew as negatives. So do the zeros of a whole table: it is what such a gradient
reveals in any format. Where that matters, `privacy.noise_multiplier` fills every row.

Decoding adds and multiplies in a fixed order, so that all machines get the same numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from common import seeds
from common.config import Codec
from common.errors import RunError
from common.protocol import HISTORY, VIEWS, Tensors

TABLES = (VIEWS, HISTORY)
"""What has a row an item. The rest of what travels is small, and goes as floats of 16 or 32 bits."""
ITEMS, SCALES = "/items", "/scales"
"""What follows a table's name in the names of its parts: the items [n] that are there, where not all are, and a scale for each
row, [..., n]."""
LEVELS = {
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1520),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
"""By bits, the positive levels that replace a standard normal number with the least squared error (Max 1960, Table I)."""
WORD = 64
"""Signs that one draw gives."""
TINY = torch.finfo(torch.float32).tiny

Shapes = Mapping[str, tuple[int, ...]]
Layout = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of what a row becomes, by part: "" for its numbers, SCALES."""


def encode(tensors: Tensors, codec: Codec, salt: int) -> dict[str, Tensor]:
    """Write tensors as they travel. The signs of rotations are drawn by `salt`, which the reader must know."""
    plain = torch.float16 if codec == "float16" else torch.float32
    encoded: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if name in TABLES:
            parts = _write(value.detach().cpu().float(), FORMATS[codec], salt)
            encoded |= {name + part: written for part, written in parts.items()}
        else:
            encoded[name] = value.detach().to(plain)
    return encoded


def decode(encoded: Tensors, shapes: Shapes, codec: Codec, salt: int) -> dict[str, Tensor]:
    """Read what `encode` wrote, in float32; `shapes` are those of the tables that may come.

    Who wrote it is not trusted. Raises `RunError` for parts that do not fit a table, before it makes room for one. A whole
    table of floats, and what is no table, may have any shape: they are as large as what came.
    """
    rest, decoded = dict(encoded), {}
    for name in TABLES:
        parts = {part: rest.pop(name + part) for part in ("", ITEMS, SCALES) if name + part in rest}
        if parts:
            decoded[name] = _read(name, parts, shapes.get(name), codec, salt)
    return decoded | {name: value.float() for name, value in rest.items()}


def rotation(seed: int, round: int = 0) -> int:
    """What signs are drawn by: another number in each round, for gradients; in round 0 for views, which may outlast one."""
    return seeds.key("rotation", seed, round)


class Format(Protocol):
    """One way to write rows of numbers."""

    def layout(self, dim: int) -> Layout:
        """What a row of `dim` numbers becomes."""
        ...

    def write(self, rows: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Write float32 rows [..., dim]; `keys` [...] are what each draws its signs by."""
        ...

    def read(self, parts: Tensors, keys: Tensor, dim: int) -> Tensor:
        """Read float32 rows [..., dim]."""
        ...


@dataclass(frozen=True)
class Float:
    """Each number a float; bfloat16, which NumPy lacks, travels as the integers that its bits are."""

    dtype: torch.dtype

    def layout(self, dim: int) -> Layout:
        """A row is its numbers."""
        return {"": (torch.int16 if self.dtype == torch.bfloat16 else self.dtype, (dim,))}

    def write(self, rows: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Round to nearest."""
        return {"": rows.to(self.dtype).view(torch.int16 if self.dtype == torch.bfloat16 else self.dtype)}

    def read(self, parts: Tensors, keys: Tensor, dim: int) -> Tensor:
        """Widen."""
        return parts[""].view(self.dtype).float()


@dataclass(frozen=True)
class Int8:
    """Each number a whole multiple of its row's step, which is the row's largest number over 127."""

    def layout(self, dim: int) -> Layout:
        """A byte for each number, and the step."""
        return {"": (torch.int8, (dim,)), SCALES: (torch.float32, ())}

    def write(self, rows: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Round to nearest: off by half a step at most."""
        steps = rows.abs().amax(-1) / 127
        whole = (rows / steps.clamp(min=TINY)[..., None]).round().nan_to_num()
        return {"": whole.to(torch.int8), SCALES: steps}

    def read(self, parts: Tensors, keys: Tensor, dim: int) -> Tensor:
        """Multiply."""
        return parts[""] * parts[SCALES][..., None]


@dataclass(frozen=True)
class Rotated:
    """A few bits for each number of the rotated row, one plane after the other, and a bfloat16 for its scale."""

    bits: int

    def layout(self, dim: int) -> Layout:
        """A row is filled up to a power of two."""
        return {"": (torch.uint8, (self.bits, _width(dim) // 8)), SCALES: (torch.int16, ())}

    def write(self, rows: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Take the nearest level for each rotated number, and the scale by which <row, written row> = |row|^2."""
        dim, width, levels = rows.shape[-1], _width(rows.shape[-1]), self._levels()
        norms = rows.norm(dim=-1)
        rotated = hadamard(pad(rows, (0, width - dim)) * _signs(keys, width)) / norms.clamp(min=TINY)[..., None]
        codes = torch.bucketize(rotated, (levels[1:] + levels[:-1]) / 2)
        scales = norms / (rotated * levels[codes]).sum(-1).clamp(min=1)  # at least 1, but for a row of zeros
        planes = [np.packbits((codes >> bit & 1).byte().numpy(), axis=-1) for bit in range(self.bits)]
        return {"": torch.from_numpy(np.stack(planes, -2)), SCALES: scales.bfloat16().view(torch.int16)}

    def read(self, parts: Tensors, keys: Tensor, dim: int) -> Tensor:
        """Look up the levels, rotate them back, scale."""
        width, planes = _width(dim), np.unpackbits(parts[""].numpy(), axis=-1)
        codes = torch.from_numpy(sum(planes[..., bit, :] << bit for bit in range(self.bits)))
        rows = hadamard(self._levels()[codes.int()]) * _signs(keys, width)
        return rows[..., :dim] * parts[SCALES].view(torch.bfloat16).float()[..., None]

    def _levels(self) -> Tensor:
        half = torch.tensor(LEVELS[self.bits])
        return torch.cat([-half.flip(0), half])


FORMATS: Mapping[Codec, Format] = {
    "float32": Float(torch.float32),
    "float16": Float(torch.float16),
    "bfloat16": Float(torch.bfloat16),
    "int8": Int8(),
    "bits4": Rotated(4),
    "bits3": Rotated(3),
    "bits2": Rotated(2),
    "bits1": Rotated(1),
}


def hadamard(rows: Tensor) -> Tensor:
    """Multiply rows [..., width] by the Hadamard matrix; width is a power of two. Done twice, it gives width times the rows."""
    shape, step = rows.shape, 1
    while step < shape[-1]:
        left, right = rows.view(*shape[:-1], shape[-1] // (2 * step), 2, step).unbind(-2)
        rows, step = torch.stack([left + right, left - right], -2), 2 * step
    return rows.view(shape)


def _write(table: Tensor, format: Format, salt: int) -> dict[str, Tensor]:
    """The parts of a table: all items, or those that are not zero, by whichever is smaller."""
    layout, (n_items, dim) = format.layout(table.shape[-1]), table.shape[-2:]
    bytes_a_row = sum(kind.itemsize * math.prod(shape) for kind, shape in layout.values())
    bytes_an_item = bytes_a_row * math.prod(table.shape[:-2])
    items = (table.view(-1, n_items, dim).abs().amax((0, 2)) != 0).nonzero().flatten().int()  # `any` is slower
    keys = _keys(table.shape, salt)
    if len(items) * (bytes_an_item + items.itemsize) >= n_items * bytes_an_item:
        return format.write(table, keys)
    return {ITEMS: items, **format.write(table.index_select(-2, items), keys.index_select(-1, items))}


def _read(name: str, parts: dict[str, Tensor], shape: tuple[int, ...] | None, codec: Codec, salt: int) -> Tensor:
    """The table `name` [*shape] from its parts. Raises `RunError` unless they fit."""
    format, items = FORMATS[codec], parts.pop(ITEMS, None)
    if isinstance(format, Float) and items is None and parts.keys() == {""}:
        shape = tuple(parts[""].shape)
    if shape is None or len(shape) < 2:
        raise RunError(f"{name!r} came, and is no table that was asked for")
    n_items, dim = shape[-2:]
    if items is not None and not _ascending(items, n_items):
        raise RunError(f"{name!r} came with items that are not numbers from 0 to {n_items - 1} in ascending order")
    rows = (*shape[:-2], n_items if items is None else len(items))
    wanted = {part: (kind, (*rows, *rest)) for part, (kind, rest) in format.layout(dim).items()}
    found = {part: (value.dtype, tuple(value.shape)) for part, value in parts.items()}
    if found != wanted:
        raise RunError(f"{name!r} came as {found}, which is not how {codec} writes {wanted}")
    keys = _keys(shape, salt)
    if items is None:
        return format.read(parts, keys, dim)
    there = format.read(parts, keys.index_select(-1, items), dim)
    return torch.zeros(shape).index_copy_(-2, items.long(), there)


def _ascending(items: Tensor, n_items: int) -> bool:
    """Whether these are numbers of different items, in order."""
    if items.dtype != torch.int32 or items.ndim != 1:
        return False
    return not len(items) or bool(items[0] >= 0 and items[-1] < n_items and (items[1:] > items[:-1]).all())


def _width(dim: int) -> int:
    """The power of two that rows of `dim` numbers are filled up to; bits are packed by eight."""
    return max(8, 1 << (dim - 1).bit_length())


def _keys(shape: tuple[int, ...], salt: int) -> Tensor:
    """What the rows of a table [..., n_items, dim] draw their signs by, [..., n_items]."""
    return seeds.mix(salt, torch.arange(math.prod(shape[:-1])).view(shape[:-1]))


def _signs(keys: Tensor, width: int) -> Tensor:
    """1 or -1 for each number of the rows with `keys` [...], [..., width]."""
    words = seeds.mix(0, keys[..., None], torch.arange(math.ceil(width / WORD)))
    bits = words[..., None] >> torch.arange(WORD) & 1
    return 1 - 2 * bits.flatten(-2)[..., :width].float()
