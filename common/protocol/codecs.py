"""Writes tables of items in fewer bits a number, and without the items that are zero.

A table is [n_views, n_items, dim], or [n_items, dim]; a row of it is one item in one view. Formats:
- float32, float16, bfloat16: each number rounded to nearest;
- int16, int8: whole multiples of a step that each row has of its own (of int16 under masks, where no row can be looked at,
  see `tessera.common.protocol.linear`);
- 1%, 4%, 15%: what is lost is this share of the table's sum of squares. Views of one item resemble each other, and the
  gradients of all views by what a person was shown all but coincide. So the views are turned into their principal components,
  and only the leading ones travel, in 1 to 4 bits a number, more for larger ones. A component's row is rotated, so that its
  numbers look like draws from one normal distribution, and each is replaced by the nearest of the levels that suit this
  distribution best (Max 1960). The rotation is a Hadamard transform after random signs, and a row's scale is such that the row
  comes back right on average over rotations (EDEN, Vargaftik et al. 2022): in sums over rounds these errors cancel.

Where many items are zero, as in the gradient of a few people's events, only the others travel, with their numbers. These
say which items the people of a node have, or drew as negatives. So do the zeros of a whole table: it is what such a gradient
reveals in any format. Where that matters, `privacy.noise_multiplier` fills every row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from tessera.common.config.settings import Codec
from tessera.common.errors import RunError
from tessera.common.protocol.messages import HISTORY, VIEWS
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils import counter_rng

TABLES = (VIEWS, HISTORY)
"""What has a row an item. The rest of what travels is small, and goes as floats of 16 or 32 bits."""
ITEMS, SCALES, MIX, BITS = "/items", "/scales", "/mix", "/bits"
"""What follows a table's name in the names of its parts: the items [n] that are there, where not all are; a scale a row,
[..., n]; the share of each view in each component, [n_components, n_views]; the bits of each component's numbers."""
LEVELS = {
    1: (0.7979,),
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1520),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6181, 2.0690, 2.7326),
}
"""By bits, the positive levels that replace a standard normal number with the least squared error (Max 1960, Table I)."""
LOST = (1.0, 0.571, 0.133, 0.0358, 0.0096)
"""The share of a row's squared length that 0 to 4 bits lose: E / (1 - E) for Max's error E, as the scales make up for it."""
WORD = 64
"""Signs that one draw gives."""
TINY = torch.finfo(torch.float32).tiny

Shapes = Mapping[str, tuple[int, ...]]
Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Type and shape of each part of a table, by what follows the table's name; "" for its numbers."""


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
    rest, decoded, format = dict(encoded), {}, FORMATS[codec]
    for name in TABLES:
        parts = {part: rest.pop(name + part) for part in ("", ITEMS, SCALES, MIX, BITS) if name + part in rest}
        if parts.keys() == {""} and isinstance(format, Float) and parts[""].dtype == format.stored:
            decoded[name] = format.read(parts)
        elif parts:
            decoded[name] = _read(name, parts, shapes.get(name), codec, salt)
    return decoded | {name: value.float() for name, value in rest.items()}


def rows(encoded: Tensors, name: str = VIEWS) -> int:
    """Of how many views a table says what it says, as far as its parts tell; 0 where there is no such table."""
    part = encoded.get(name + MIX, torch.zeros(0)).T if name + MIX in encoded else encoded.get(name, torch.zeros(0))
    return len(part) if part.ndim else 0


def rotation(seed: int, round: int = 0) -> int:
    """What signs are drawn by: another number in each round, for gradients; in round 0 for views, which may outlast one."""
    return counter_rng.key("rotation", seed, round)


class Format(Protocol):
    """One way to write float32 tables [n_views, n_items, dim], whose rows may draw by their `keys` [n_views, n_items].

    Of the parts, numbers [..., n_items, _] and scales [..., n_items] are each item's own.
    """

    def layout(self, parts: Tensors, shape: tuple[int, int, int]) -> Layout:
        """What the parts of a table of this shape must be. Raises `RunError` where the parts say something impossible."""
        ...

    def write(self, table: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Write a table."""
        ...

    def read(self, parts: Tensors, keys: Tensor, dim: int) -> Tensor:
        """Read a table."""
        ...


@dataclass(frozen=True)
class Float:
    """Each number a float; bfloat16, which NumPy lacks, travels as the integers that its bits are."""

    dtype: torch.dtype

    @property
    def stored(self) -> torch.dtype:
        """Type of what travels."""
        return torch.int16 if self.dtype == torch.bfloat16 else self.dtype

    def layout(self, parts: Tensors, shape: tuple[int, int, int]) -> Layout:
        """The numbers."""
        return {"": (self.stored, shape)}

    def write(self, table: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Round to nearest."""
        return {"": table.to(self.dtype).view(self.stored)}

    def read(self, parts: Tensors, keys: Tensor | None = None, dim: int = 0) -> Tensor:
        """Widen."""
        return parts[""].view(self.dtype).float()


@dataclass(frozen=True)
class Whole:
    """Each number a whole multiple of its row's step, which is the row's largest number over the type's."""

    dtype: torch.dtype

    def layout(self, parts: Tensors, shape: tuple[int, int, int]) -> Layout:
        """A whole number for each, and the steps."""
        return {"": (self.dtype, shape), SCALES: (torch.float32, shape[:2])}

    def write(self, table: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Round to nearest: off by half a step at most."""
        steps = table.abs().amax(-1) / torch.iinfo(self.dtype).max
        whole = (table / steps.clamp(min=TINY)[..., None]).round().nan_to_num()
        return {"": whole.to(self.dtype), SCALES: steps}

    def read(self, parts: Tensors, keys: Tensor, dim: int) -> Tensor:
        """Multiply."""
        return parts[""] * parts[SCALES][..., None]


@dataclass(frozen=True)
class Components:
    """The views' principal components, rotated, in as few bits as lose no more than the share `lost`; a scale is a bfloat16."""

    lost: float

    def layout(self, parts: Tensors, shape: tuple[int, int, int]) -> Layout:
        """Planes of bits, those of one component after those of another, for rows filled up to a power of two."""
        (n_views, n_items, dim), bits = shape, parts.get(BITS, torch.zeros(0))
        if bits.dtype != torch.uint8 or bits.ndim != 1 or len(bits) > n_views or not set(bits.tolist()) <= set(LEVELS):
            raise RunError(f"it does not say of at most {n_views} components that they have 1 to {max(LEVELS)} bits")
        return {
            "": (torch.uint8, (int(bits.sum()), n_items, _width(dim) // 8)),
            SCALES: (torch.int16, (len(bits), n_items)),
            MIX: (torch.float32, (len(bits), n_views)),
            BITS: (torch.uint8, (len(bits),)),
        }

    def write(self, table: Tensor, keys: Tensor) -> dict[str, Tensor]:
        """Turn the views into components, and write those that count."""
        mix, bits = self._components(table)
        components = (mix @ table.flatten(1)).view(len(bits), *table.shape[1:])
        written = [_quantised(*one) for one in zip(components, keys, bits, strict=False)]
        planes = [plane for planes, _ in written for plane in planes]
        empty = torch.zeros(0, table.shape[1], _width(table.shape[2]) // 8, dtype=torch.uint8)
        scales = torch.stack([scale for _, scale in written]) if written else torch.zeros(0, table.shape[1])
        return {
            "": torch.stack(planes) if planes else empty,
            SCALES: scales.bfloat16().view(torch.int16),
            MIX: mix,
            BITS: torch.tensor(bits, dtype=torch.uint8),
        }

    def read(self, parts: Tensors, keys: Tensor, dim: int) -> Tensor:
        """Read the components, and turn them back into views."""
        bits, mix, scales = parts[BITS].tolist(), parts[MIX], parts[SCALES].view(torch.bfloat16).float()
        planes = torch.split(parts[""], bits)
        rows = [_restored(*one, dim) for one in zip(planes, keys, scales, strict=False)]  # keys are of more
        components = torch.stack(rows) if rows else torch.zeros(0, keys.shape[1], dim)
        return (mix.T @ components.flatten(1)).view(mix.shape[1], *components.shape[1:])

    def _components(self, table: Tensor) -> tuple[Tensor, list[int]]:
        """The leading components' shares of the views [n_components, n_views], and their bits."""
        flat = table.flatten(1)
        gram = (flat @ flat.T).double()
        if not torch.isfinite(gram).all():  # whoever reads it is to see that
            return torch.eye(len(flat)), [1] * len(flat)
        sizes, vectors = torch.linalg.eigh(gram)
        bits = shared_out(sizes.flip(0).clamp(min=0).tolist(), self.lost)
        return vectors.flip(1)[:, : len(bits)].T.float().contiguous(), bits


FORMATS: Mapping[Codec, Format] = {
    "float32": Float(torch.float32),
    "float16": Float(torch.float16),
    "bfloat16": Float(torch.bfloat16),
    "int16": Whole(torch.int16),
    "int8": Whole(torch.int8),
    "1%": Components(0.01),
    "4%": Components(0.04),
    "15%": Components(0.15),
}


def shared_out(sizes: Sequence[float], lost: float) -> list[int]:
    """Bits for components of these `sizes` (sums of squares, the largest first) until no more than the share `lost` is lost:
    one bit after the other to whichever saves most. Components without any are left out."""
    bits, left = [0] * len(sizes), sum(sizes)
    while left > lost * sum(sizes):
        saved = [
            size * (LOST[own] - LOST[own + 1]) if own < max(LEVELS) else 0.0
            for size, own in zip(sizes, bits, strict=True)
        ]
        bits[saved.index(max(saved))] += 1
        left -= max(saved)
    return [own for own in bits if own]


@cache
def hadamard(width: int) -> Tensor:
    """The Hadamard matrix [width, width], for a power of two; its square is width times the identity."""
    matrix = torch.ones(1, 1)
    while len(matrix) < width:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def _quantised(rows: Tensor, keys: Tensor, bits: int) -> tuple[list[Tensor], Tensor]:
    """Planes [n_items, width / 8], as many as `bits`, for rows [n_items, dim], and the scales [n_items] by which
    <row, restored row> = |row|^2."""
    (_, dim), levels = rows.shape, _levels(bits)
    norms = rows.norm(dim=-1)
    rotated = (pad(rows, (0, _width(dim) - dim)) * _signs(keys, _width(dim))) @ hadamard(_width(dim))
    rotated /= norms.clamp(min=TINY)[:, None]
    codes = torch.bucketize(rotated, (levels[1:] + levels[:-1]) / 2, out_int32=True)
    scales = norms / (rotated * levels[codes]).sum(-1).clamp(min=1)  # at least 1, but for a row of zeros
    codes = codes.to(torch.uint8)
    return [torch.from_numpy(np.packbits((codes >> bit & 1).numpy(), axis=-1)) for bit in range(bits)], scales


def _restored(planes: Tensor, keys: Tensor, scales: Tensor, dim: int) -> Tensor:
    """Rows [n_items, dim] from their planes [bits, n_items, width / 8], keys and scales [n_items]."""
    codes = np.zeros((*planes.shape[1:-1], _width(dim)), dtype=np.uint8)
    for bit, plane in enumerate(planes.numpy()):
        codes |= np.unpackbits(plane, axis=-1) << bit
    rows = _levels(len(planes))[torch.from_numpy(codes).int()] @ hadamard(_width(dim))
    return (rows * _signs(keys, _width(dim)) * scales[:, None])[:, :dim]


def _write(table: Tensor, format: Format, salt: int) -> dict[str, Tensor]:
    """The parts of a table: of all items, or of those that are not zero, by whichever is smaller."""
    views = table.reshape(-1, *table.shape[-2:])
    parts = format.write(views, _keys(views.shape[:2], salt))
    items = (views.abs().amax((0, 2)) != 0).nonzero().flatten().int()  # `any` takes three times as long
    by_item = {part: axis for part, axis in (("", -2), (SCALES, -1)) if part in parts}
    size = sum(parts[part].nbytes for part in by_item)
    if len(items) * (size + items.itemsize * views.shape[1]) < size * views.shape[1]:
        parts |= {part: parts[part].index_select(axis, items) for part, axis in by_item.items()} | {ITEMS: items}
    if parts.keys() == {""}:
        parts[""] = parts[""].view(table.shape)
    return parts


def _read(name: str, parts: dict[str, Tensor], shape: tuple[int, ...] | None, codec: Codec, salt: int) -> Tensor:
    """The table `name` [*shape] from its parts. Raises `RunError` unless they fit."""
    format, items = FORMATS[codec], parts.pop(ITEMS, None)
    if shape is None:
        raise RunError(f"{name!r} came, which is no table that was asked for")
    n_views, (n_items, dim) = math.prod(shape[:-2]), shape[-2:]
    if items is not None and not _ascending(items, n_items):
        raise RunError(f"{name!r} came with items that are not numbers from 0 to {n_items - 1} in ascending order")
    try:
        wanted = format.layout(parts, (n_views, n_items if items is None else len(items), dim))
    except RunError as error:
        raise RunError(f"{name!r} came as {codec}, but {error}") from None
    found = {part: (value.dtype, tuple(value.shape)) for part, value in parts.items()}
    if found != wanted:
        raise RunError(f"{name!r} came as {found}, which is not how {codec} writes {wanted}")
    keys = _keys((n_views, n_items), salt)
    if items is None:
        return format.read(parts, keys, dim).view(shape)
    there = format.read(parts, keys.index_select(1, items), dim)
    return torch.zeros(n_views, n_items, dim).index_copy_(1, items.long(), there).view(shape)


def _ascending(items: Tensor, n_items: int) -> bool:
    """Whether these are numbers of different items, in order."""
    if items.dtype != torch.int32 or items.ndim != 1:
        return False
    return not len(items) or bool(items[0] >= 0 and items[-1] < n_items and (items[1:] > items[:-1]).all())


def _levels(bits: int) -> Tensor:
    """All levels, the lowest first."""
    half = torch.tensor(LEVELS[bits])
    return torch.cat([-half.flip(0), half])


def _width(dim: int) -> int:
    """The power of two that rows of `dim` numbers are filled up to; bits are packed by eight."""
    return max(8, 1 << (dim - 1).bit_length())


def _keys(shape: tuple[int, ...], salt: int) -> Tensor:
    """What rows draw their signs by, [n_views, n_items]."""
    return counter_rng.mix(salt, torch.arange(math.prod(shape)).view(shape))


def _signs(keys: Tensor, width: int) -> Tensor:
    """1 or -1 for each number of the rows with `keys` [n_items], [n_items, width]."""
    words = counter_rng.mix(0, keys[:, None], torch.arange(math.ceil(width / WORD))).numpy()
    bits = torch.from_numpy(np.unpackbits(words.astype("<i8").view(np.uint8), axis=-1))
    return 1 - 2 * bits[:, :width].float()
