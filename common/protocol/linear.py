"""Writes gradients by public linear maps alone, so that devices' can be added up under masks in 16 bits a number.

1. Projection on few directions of the views (`projection`).
2. Rotation: all numbers of a tensor are put in a random order and go through two Hadamard transforms, each after random signs,
   that overlap in the middle, so that no length has to be filled up to a power of two. It keeps lengths. Whatever numbers were
   large, they now look like draws from one normal distribution (Suresh et al. 2017, Distributed Mean Estimation with Limited
   Communication), and one scale suits them all.
3. Fixed point of 16 bits (`tessera.common.secure.fixed_point`), whose bound is public: `MARGIN` standard deviations of the
   longest tensor that a device may have. What is longer is scaled down. The sum of the round before says how long that is: with
   three or more devices, as good as none is longer than the sum of all.
Law: where nothing is too long, `linear_encode` is linear, and `linear_decode` of a sum is the sum's projection. Rounding, as
n devices add up, loses about n^3 MARGIN^2 / (6 * 2^30) of the squares of a sum as long as that of the round before: 0.0006% for
10 devices, 0.15% for 64.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tessera.common.protocol.codecs import TABLES, hadamard
from tessera.common.protocol.messages import VIEWS
from tessera.common.protocol.projection import Projection
from tessera.common.protocol.tensors import Tensors
from tessera.common.secure.fixed_point import Spec
from tessera.common.utils import counter_rng

MARGIN = 6.0
"""Standard deviations of a rotated tensor's numbers that fit: of a million numbers, one in 500 tensors has a larger one."""


@dataclass(frozen=True)
class LinearPlan:
    """How a round's gradients are written: public, and the same for all devices of a sum.

    `projection` is the task's, `salt` draws the rotation (`codecs.rotation`), and `longest` is the largest Euclidean norm that
    a device's tensor may have, by name: `lengths` of the sum of the round before, or before the first one what is allowed.
    """

    projection: Projection | None
    salt: int
    longest: Mapping[str, float]

    def layout(self, sent: Tensors) -> list[Spec]:
        """What a device sends of gradients for `sent`, in the order of names: tables in words of 16 bits, the rest of 32."""
        outlined = self.projection.outline(sent) if self.projection else sent
        return [
            Spec(
                name, (size := outlined[name].numel(),), "short" if name in TABLES else "table", self.bound(name, size)
            )
            for name in sorted(outlined)
        ]

    def bound(self, name: str, size: int) -> float:
        """The largest |number| of a device's tensor of this size, once it is rotated."""
        return self.longest[name] * min(1.0, MARGIN / math.sqrt(size))


def lengths(summed: Tensors) -> dict[str, float]:
    """The norm of each tensor of a sum of gradients, rotated or not."""
    return {name: float(value.double().norm()) for name, value in summed.items()}


def linear_encode(gradients: Tensors, plan: LinearPlan) -> dict[str, Tensor]:
    """Write a device's gradients, projected or of all views, as flat tensors that fit the plan's layout.

    Numbers that are not finite stay so, for whoever rounds them to see.
    """
    if plan.projection and len(gradients[VIEWS]) == plan.projection.n_views and not plan.projection.done(gradients):
        gradients = plan.projection.project(gradients)
    encoded = {}
    for name, value in gradients.items():
        rotated = _rotated(value.detach().cpu().float().flatten(), _salt(plan, name))
        largest = float(rotated.abs().max()) if rotated.numel() else 0.0
        bound = plan.bound(name, rotated.numel())
        encoded[name] = rotated * (bound / largest * (1 - 1e-6)) if largest > bound else rotated
    return encoded


def linear_decode(summed: Tensors, plan: LinearPlan, sent: Tensors) -> dict[str, Tensor]:
    """Read a sum of what `linear_encode` wrote of gradients for `sent`: projected still, as `projection.expand` takes them."""
    outlined = plan.projection.outline(sent) if plan.projection else sent
    return {
        name: _turned_back(summed[name].float().flatten(), _salt(plan, name)).view(value.shape)
        for name, value in outlined.items()
    }


def _salt(plan: LinearPlan, name: str) -> int:
    return counter_rng.key("linear", plan.salt, name)


@lru_cache(maxsize=8)
def _draws(salt: int, size: int) -> tuple[Tensor, list[Tensor]]:
    """A random order of `size` numbers, and signs for them before each of two transforms: with the same before both, the second
    would undo much of the first."""
    words = counter_rng.mix(salt, torch.arange(size))
    return torch.argsort(words), [1 - 2 * (words >> bit & 1).float() for bit in (0, 1)]


def _rotated(numbers: Tensor, salt: int) -> Tensor:
    order, signs = _draws(salt, len(numbers))
    mixed = numbers[order]
    for part, sign in zip(_parts(len(mixed)), signs, strict=False):
        mixed[part] = _transformed(mixed[part] * sign[part])
    return mixed


def _turned_back(mixed: Tensor, salt: int) -> Tensor:
    order, signs = _draws(salt, len(mixed))
    numbers = mixed.clone()
    for part, sign in reversed(list(zip(_parts(len(mixed)), signs, strict=False))):
        numbers[part] = _transformed(numbers[part]) * sign[part]
    return torch.empty_like(numbers).index_copy_(0, order, numbers)


def _parts(size: int) -> list[slice]:
    """The first and the last of `size` numbers, as many as the largest power of two; only once where that is all."""
    width = 1 << (size.bit_length() - 1) if size else 0
    return [slice(start, start + width) for start in sorted({0, size - width})] if size else []


def _transformed(numbers: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of as many numbers as a power of two, by two small ones."""
    bits = len(numbers).bit_length() - 1
    left, right = hadamard(1 << bits // 2), hadamard(1 << bits - bits // 2)
    return (left @ numbers.view(len(left), len(right)) @ right).flatten() / math.sqrt(len(numbers))
