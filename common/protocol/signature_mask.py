"""Draws which coordinates of a signature are sent: the same for all clients of a run, or cosines would mean nothing."""

import torch
from torch import Tensor

from tessera.common.utils import counter_rng

KEPT = 0.4
"""Share of the coordinates that are sent (FedMosaic, N_s)."""


def n_kept(size: int) -> int:
    """How many of `size` coordinates are sent."""
    return max(1, round(KEPT * size))


def kept_coordinates(size: int, seed: int) -> Tensor:
    """Indices of the coordinates that all clients of a run send, [n_kept], increasing."""
    draws = counter_rng.uniform(counter_rng.key("signature-mask", seed), torch.arange(size))
    return draws.argsort(stable=True)[: n_kept(size)].sort().values
