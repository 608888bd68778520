"""Measures how one target of a person is ranked: its expected figure over all orders of the candidates it is tied with."""

import torch
from torch import Tensor


def hit_rate(above: Tensor, ties: Tensor, k: int) -> Tensor:
    """Expected HR@k of each user, [n_users]: the share of the tied positions that lie within the first k."""
    return (k - above).clamp(min=0).minimum(ties) / ties


def ndcg(above: Tensor, ties: Tensor, k: int) -> Tensor:
    """Expected NDCG@k of each user with one target, [n_users]: the mean of 1 / log2(position + 2) over tied positions."""
    gains = 1 / torch.log2(torch.arange(k, dtype=torch.float64, device=above.device) + 2)
    before = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    first, last = above.clamp(max=k), (above + ties).clamp(max=k)
    return (before[last] - before[first]) / ties
