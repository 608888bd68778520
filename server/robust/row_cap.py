"""Shortens the longest rows, so that no unit says more of an item than others do.

A row is one item's part of a tensor, and its length its Euclidean norm divided by the unit's weight. Where k units may be
hostile, nobody's row is longer than the k + 1-th longest: what stands out alone is cut to its neighbour's length, and keeps
its direction. (Norm bounding as in Sun et al. 2019, but row by row, and with a bound that the units set one another.)
"""

import torch
from torch import Tensor

from tessera.server.robust.combine import TensorCombiner

Rows = tuple[Tensor, Tensor]
"""Rows [..., dim], and their lengths [..., 1]."""


class CappedSum(TensorCombiner):
    """The sum of one tensor [..., dim] over units, with each row cut to the length of the `k` + 1-th longest.

    Laws: with `k` = 0 the plain sum; with at most `k` liars no row, divided by the weight, is longer than the longest of the
    honest units'. Where fewer units came, the shortest is the bound. In memory are k + 2 tensors, however many units there are:
    the k + 1 longest of each row, and the sum of the rest.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self._longest: list[Rows] = []
        self._rest = torch.zeros(())

    def add(self, gradient: Tensor, weight: float) -> None:
        """Take up a unit's gradient: of each row what is not, or no longer, among the longest goes to the rest."""
        new = gradient, torch.linalg.vector_norm(gradient, dim=-1, keepdim=True, dtype=torch.float64) / weight
        for place, old in enumerate(self._longest):
            longer = new[1] > old[1]
            self._longest[place] = torch.where(longer, new[0], old[0]), torch.where(longer, new[1], old[1])
            new = torch.where(longer, old[0], new[0]), torch.where(longer, old[1], new[1])
        if len(self._longest) <= self.k:
            self._longest.append(new)
        else:
            self._rest = self._rest + new[0]

    def total(self) -> Tensor:
        """The sum of what came so far."""
        *longer, (last, bound) = self._longest
        cut = (rows * (bound / lengths.clamp(min=TINY)).clamp(max=1).to(rows) for rows, lengths in longer)
        return sum(cut, self._rest + last)


TINY = torch.finfo(torch.float64).tiny
"""Keeps rows of zeros from dividing by zero."""
