"""Turns tables by a public random rotation before they are masked in 16 bits a number: one public bound then suits them all.

All numbers of a table are put in a random order and go through two Hadamard transforms, each after random signs, that overlap
in the middle, so that no length has to be filled up to a power of two. Whatever numbers were large, they now look like draws
from one normal distribution (Suresh et al. 2017, Distributed Mean Estimation with Limited Communication).
Law: `rotated` is linear and keeps lengths, and `turned_back` undoes it; so both go over sums.

The bound is `MARGIN` standard deviations of the longest table that a device may have, which the sum of the round before tells:
with three or more devices as good as none is longer than the sum of all, and there is `ROOM` for one that is. Rounding in
16 bits (`tessera.common.secure.fixed_point`), as n devices add up, then loses about n^3 (ROOM MARGIN)^2 / (6 * 2^30) of the
squares of a sum as long as that of the round before: 0.002% for 10 devices, 0.6% for 64.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from tessera.common.protocol.codecs import hadamard
from tessera.common.utils import counter_rng

MARGIN = 6.0
"""Standard deviations of a rotated table's numbers that fit: of a million numbers, one in 500 tables has a larger one."""
ROOM = 2.0
"""How much longer than the sum of the round before a device's table may be."""


def bound(length: float, size: int) -> float:
    """The largest |number| of a device's rotated table of this size, by the Euclidean length of the sum of the round before."""
    return ROOM * length * min(1.0, MARGIN / math.sqrt(size))


def rotated(table: Tensor, salt: int, name: str) -> Tensor:
    """Turn a table, float32 of any shape, which it keeps. The rotation is drawn by `salt` and the table's name.

    Numbers that are not finite stay so, for whoever rounds them to see.
    """
    order, signs = _draws(salt, name, table.numel())
    mixed = table.detach().cpu().float().flatten()[order]
    for part, sign in zip(_parts(len(mixed)), signs, strict=False):
        mixed[part] = _transformed(mixed[part] * sign[part])
    return mixed.view(table.shape)


def turned_back(table: Tensor, salt: int, name: str) -> Tensor:
    """Undo `rotated`."""
    order, signs = _draws(salt, name, table.numel())
    numbers = table.float().flatten().clone()
    for part, sign in reversed(list(zip(_parts(len(numbers)), signs, strict=False))):
        numbers[part] = _transformed(numbers[part]) * sign[part]
    return torch.empty_like(numbers).index_copy_(0, order, numbers).view(table.shape)


@lru_cache(maxsize=2)
def _draws(salt: int, name: str, size: int) -> tuple[Tensor, list[Tensor]]:
    """A random order of `size` numbers, and signs for them before each of two transforms: with the same before both, the second
    would undo much of the first. Kept for the devices of a simulation, which have a round's two tables turned alike."""
    words = counter_rng.mix(counter_rng.key("linear", salt, name), torch.arange(size))
    return torch.argsort(words), [1 - 2 * (words >> bit & 1).float() for bit in (0, 1)]


def _parts(size: int) -> list[slice]:
    """The first and the last of `size` numbers, as many as the largest power of two; only once where that is all."""
    width = 1 << (size.bit_length() - 1) if size else 0
    return [slice(start, start + width) for start in sorted({0, size - width})] if size else []


def _transformed(numbers: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of as many numbers as a power of two, by two small ones."""
    bits = len(numbers).bit_length() - 1
    left, right = hadamard(1 << bits // 2), hadamard(1 << bits - bits // 2)
    return (left @ numbers.view(len(left), len(right)) @ right).flatten() / math.sqrt(len(numbers))
