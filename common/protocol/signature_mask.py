"""Draws which coordinates of a signature are sent: the same for all clients of a run, or cosines would mean nothing."""

import torch
from torch import Tensor

from tessera.common.utils import counter_rng


def n_kept(size: int, kept: float) -> int:
    """How many of `size` coordinates are sent where it is a share `kept` of them (FedMosaic, N_s)."""
    return max(1, round(kept * size))


def kept_coordinates(size: int, seed: int, kept: float) -> Tensor:
    """Indices of the coordinates that all clients of a run send, [n_kept], increasing."""
    draws = counter_rng.uniform(counter_rng.key("signature-mask", seed), torch.arange(size))
    return draws.argsort(stable=True)[: n_kept(size, kept)].sort().values
