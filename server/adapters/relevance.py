"""Weighs who learns from whom: row-stochastic weights [n_clients, n_clients], one row a receiver (RELA, FedMosaic Eq. 4)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


def similarity(signatures: Tensor) -> Tensor:
    """Cosines of the clients' signatures [n_clients, size]; a signature of zeros resembles nobody's, 0."""
    unit = normalize(signatures.double(), dim=1)
    return unit @ unit.T


def relevance(
    signatures: Tensor, temperature: float = 0.5, include_self: bool = False, groups: Sequence[str] | None = None
) -> Tensor:
    """softmax(cosine / temperature) over the others: a client's own module is already its local branch.

    With `groups`, only over clients of the same group, such as the same tower. A client alone there gets its own back.
    """
    allowed = _same(groups, len(signatures))
    if not include_self:
        allowed = allowed & ~torch.eye(len(signatures), dtype=torch.bool)
    allowed = allowed | torch.diag(~allowed.any(1))
    return (similarity(signatures) / temperature).masked_fill(~allowed, -torch.inf).softmax(1)


def uniform(n_clients: int, groups: Sequence[str] | None = None) -> Tensor:
    """Everybody's average, FedAvg; with `groups` the average of one's own group, such as FedIT within a tower."""
    allowed = _same(groups, n_clients).double()
    return allowed / allowed.sum(1, keepdim=True)


def _same(groups: Sequence[str] | None, n_clients: int) -> Tensor:
    numbers = [sorted(set(groups)).index(group) for group in groups] if groups is not None else [0] * n_clients
    column = torch.tensor(numbers)
    return column[:, None] == column[None, :]
