"""Turns named tensors into whole numbers that can be masked and added up, and their sum back.

A number x becomes round(x * scale), at random up or down, so that it is right on average. The scale is the same for all
devices of a group: as large as public bounds allow if no sum of n devices may overflow. Tables are words of 32 bits, scalars
(weights, sums, counts) of 64, of which 53 are used, and their scales are powers of two, so that whole counts stay exact.
Short tables are words of 16 bits, for n devices of about 16 - log2(n) each: the scale is the largest that fits. Their numbers
should be of one size, as `tessera.common.protocol.linear` turns them. Law: |decode(sum of words) - sum of x| < n / scale.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.common.errors import SecureSumError
from tessera.common.secure.encoding import number, text
from tessera.common.utils import counter_rng

Kind = Literal["table", "scalar", "short"]
Words = dict[str, NDArray[Any]]
"""Unsigned words of named tensors, flat: arithmetic on them is modulo 2^16, 2^32 or 2^64."""
_TYPES: dict[Kind, tuple[np.dtype[Any], np.dtype[Any]]] = {
    "table": (np.dtype("<u4"), np.dtype("<i4")),
    "scalar": (np.dtype("<u8"), np.dtype("<i8")),
    "short": (np.dtype("<u2"), np.dtype("<i2")),
}
_LARGEST_SUM: dict[Kind, int] = {"table": 2**31 - 1, "scalar": 2**53, "short": 2**15 - 1}
_BOUNDS = (1e-30, 1e30)
_CHUNK = 2**15
"""Numbers that are rounded at once: they stay in the processor's cache."""


@dataclass(frozen=True)
class Spec:
    """One tensor of an upload: its name, shape, kind of number, and the largest |value| a single device may have in it.

    All of it is public, and the same for every device of a group. Raises `SecureSumError` for what nobody could use.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    bound: float

    def __post_init__(self) -> None:
        if self.kind not in _TYPES or not all(type(one) is int and one >= 0 for one in self.shape):
            raise SecureSumError(f"{self.name}: a {self.kind} of shape {self.shape} is nothing that can be masked")
        if not _BOUNDS[0] <= self.bound <= _BOUNDS[1]:
            raise SecureSumError(f"{self.name}: its bound is {self.bound}, not between {_BOUNDS[0]} and {_BOUNDS[1]}")

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def is_short(self) -> bool:
        """Whether it is a short table."""
        return self.kind == "short"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its words."""
        return _TYPES[self.kind][0]

    def exponent(self, n: int) -> int:
        """e for sums of n devices: the largest for which n * (bound * 2^e + 1) is no overflow."""
        return math.floor(math.log2((_LARGEST_SUM[self.kind] / n - 1) / self.bound))

    def scale(self, n: int) -> float:
        """What numbers are multiplied by for sums of n devices: 2^e, and in 16 bits no less than there is room for."""
        return (_LARGEST_SUM["short"] / n - 1) / self.bound if self.is_short else 2.0 ** self.exponent(n)

    def describe(self) -> bytes:
        """Its name, kind and shape as bytes."""
        return (
            text(self.name)
            + bytes([self.dtype.itemsize, len(self.shape)])
            + b"".join(number(one, 8) for one in self.shape)
        )


Layout = Sequence[Spec]
"""The tensors of an upload in their order."""


def to_words(values: Mapping[str, Tensor], layout: Layout, n: int, salt: int) -> Words:
    """Write a device's tensors for a sum of n devices; `salt` is the device's own, so that not all round the same way.

    Raises `SecureSumError`, which names the tensor, for one too many or too few, another shape, a number that is not finite,
    and one above its bound: nothing is ever cut off silently. The number itself is not told.
    """
    names = {spec.name for spec in layout}
    if len(names) < len(layout) or names != set(values):
        strange = sorted(names ^ set(values)) or sorted(spec.name for spec in layout)
        raise SecureSumError(f"{', '.join(strange)}: not once in the upload and once in its layout")
    return {spec.name: _rounded(values[spec.name], spec, n, salt) for spec in layout}


def _rounded(value: Tensor, spec: Spec, n: int, salt: int) -> NDArray[Any]:
    if tuple(value.shape) != spec.shape:
        raise SecureSumError(f"{spec.name}: its shape is {tuple(value.shape)}, the layout says {spec.shape}")
    exact = value.detach().cpu().to(torch.float64).reshape(-1)
    if not bool((exact.abs() <= spec.bound).all()):  # nan is not either
        raise SecureSumError(f"{spec.name}: a value is above the bound of {spec.bound:g}, or not finite")
    words = torch.empty(spec.size, dtype=torch.int64)
    scale, key = spec.scale(n), counter_rng.key("secure-rounding", salt, spec.name)
    for start in range(0, spec.size, _CHUNK):
        scaled = exact[start : start + _CHUNK] * scale
        whole = scaled.floor()
        draw = counter_rng.uniform(key, torch.arange(start, start + len(scaled)))
        words[start : start + _CHUNK] = whole + (draw < scaled - whole)
    return words.numpy().astype(_TYPES[spec.kind][1]).view(spec.dtype)


def from_words(words: Words, layout: Layout, n: int) -> dict[str, Tensor]:
    """Read a sum over up to n devices: float64, in the layout's shapes."""
    return {
        spec.name: torch.from_numpy(words[spec.name].view(_TYPES[spec.kind][1]).astype(np.float64))
        .div_(spec.scale(n))
        .reshape(spec.shape)
        for spec in layout
    }


def zeros(layout: Layout) -> Words:
    """The sum of nobody."""
    return {spec.name: np.zeros(spec.size, spec.dtype) for spec in layout}


def add(total: Words, words: Words) -> None:
    """Add to a sum, in place."""
    for name, value in words.items():
        total[name] += value


def pack(words: Words, layout: Layout) -> bytes:
    """The words of all tensors, one after another."""
    return b"".join(words[spec.name].tobytes() for spec in layout)


def unpack(data: bytes, layout: Layout) -> Words:
    """Read what `pack` wrote. Raises `SecureSumError` when it is not of this layout."""
    if len(data) != (size := upload_bytes(layout)):
        raise SecureSumError(f"a masked upload has {len(data)} bytes, its layout {size}")
    words, at = {}, 0
    for spec in layout:
        words[spec.name] = np.frombuffer(data, spec.dtype, spec.size, at)
        at += words[spec.name].nbytes
    return words


def upload_bytes(layout: Iterable[Spec]) -> int:
    """Bytes of an upload's words."""
    return sum(spec.size * spec.dtype.itemsize for spec in layout)
