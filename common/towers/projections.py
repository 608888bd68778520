"""Holds the frozen matrices A and B of a PQ-LoRA: a server aligns them across towers, a device builds them into its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.common.utils import counter_rng


@dataclass(frozen=True)
class Projections:
    """Of one adapted layer: `a` [rank, d_in], `b` [d_out, rank], and what is added to `a`'s output, `offset` [rank].

    The layer computes W x + s B (P (A x + offset) + Q). With `offset` = -A mean(x) the adapter sees centred inputs, so
    that the same P means the same in towers whose inputs have different means.
    """

    a: Tensor
    b: Tensor
    offset: Tensor

    @property
    def rank(self) -> int:
        """Number of directions, the size of P and Q."""
        return len(self.a)


def orthonormal(salt: int, rows: int, columns: int) -> Tensor:
    """A random matrix [rows, columns] with orthonormal rows, or columns where these are fewer (FedMosaic Eq. 18)."""
    counters = torch.arange(rows * columns, dtype=torch.int64)
    normal = counter_rng.normal(salt, counters).view(rows, columns)
    return polar(normal)


def polar(matrix: Tensor) -> Tensor:
    """The closest matrix with orthonormal rows, or columns where these are fewer (FedMosaic Eq. 21 to 23)."""
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    closest: Tensor = u @ vt
    return closest


def random_projections(salt: int, d_in: int, d_out: int, rank: int) -> Projections:
    """Orthonormal A and B drawn independently: every tower's start, and the control for any alignment."""
    a = orthonormal(counter_rng.key(salt, "A"), rank, d_in)
    return Projections(a, orthonormal(counter_rng.key(salt, "B"), d_out, rank), torch.zeros(rank))
