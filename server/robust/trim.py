"""Drops the largest and the smallest of each coordinate, so that a few liars move nothing beyond what honest units say.

The coordinate-wise trimmed mean (Yin et al. 2018, Definition 2), by weight: with x_i = g_i / w_i of unit i and W the sum of
all weights, a coordinate of the result is W (sum w_i x_i) / (sum w_i), both sums over the units that are left there.
"""

import torch
from torch import Tensor

from tessera.server.robust.combine import TensorCombiner

Ranked = tuple[Tensor, Tensor]
"""A value of each coordinate, and the weights of the units that they are of."""


class TrimmedSum(TensorCombiner):
    """The sum of one tensor over units without the `k` largest and `k` smallest of each coordinate.

    Laws: with `k` = 0 the plain sum; with at most `k` liars each coordinate, divided by the weight, lies between the smallest
    and the largest of the honest units'. Of n units at most (n - 1) // 2 are dropped at either end. In memory are 4k + 1
    tensors, however many units there are: what may yet be dropped, with its weights, and the sum of the rest; nothing that is
    dropped was ever in that sum, where it would leave its rounding.
    """

    def __init__(self, k: int) -> None:
        self.k, self.units, self.weight = k, 0, 0.0
        self._high: list[Ranked] = []
        self._low: list[Ranked] = []
        self._middle = torch.zeros(())

    def add(self, gradient: Tensor, weight: float) -> None:
        """Take up a unit's gradient: what it pushes out of either end goes to the middle."""
        self.units, self.weight = self.units + 1, self.weight + weight
        new: Ranked | None = gradient / weight, torch.full_like(gradient, weight)
        for kept, sign in ((self._high, 1), (self._low, -1)):
            new = _insert(kept, self.k, new, sign) if new else None
        if new:
            self._middle = self._middle + new[0] * new[1]

    def total(self) -> Tensor:
        """The trimmed sum of what came so far."""
        drop = min(self.k, (self.units - 1) // 2)
        ranked = [*self._high, *reversed(self._low)]  # of each coordinate the largest first
        left = ranked[drop : len(ranked) - drop]
        dropped = sum((weights for _, weights in (*ranked[:drop], *ranked[len(ranked) - drop :])), torch.zeros(()))
        total = sum((value * weights for value, weights in left), self._middle)
        return total * (self.weight / (self.weight - dropped))


def _insert(kept: list[Ranked], k: int, new: Ranked, sign: int) -> Ranked | None:
    """Insert into the `k` most extreme of each coordinate, kept with the most extreme first, the largest where `sign` is 1;
    return what falls out. Of equal values the heavier is the more extreme, so that the order of units decides nothing."""
    for place, old in enumerate(kept):
        further = (sign * (new[0] - old[0]) > 0) | ((new[0] == old[0]) & (new[1] > old[1]))
        kept[place] = torch.where(further, new[0], old[0]), torch.where(further, new[1], old[1])
        new = torch.where(further, old[0], new[0]), torch.where(further, old[1], new[1])
    if len(kept) == k:
        return new
    kept.append(new)
    return None
