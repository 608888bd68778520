"""Losses on the device: each maps scores [n_users, n_items] to one value a user, [n_users]."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from client.histories import Histories
from common import seeds
from common.config import LocalSettings

Loss = Callable[[Tensor, Histories, LocalSettings, int], Tensor]


def softmax(scores: Tensor, histories: Histories, settings: LocalSettings, salt: int) -> Tensor:
    """Full-catalogue softmax: the mean over a user's events of -log softmax(scores)_i."""
    picked = _pick(scores, histories.owners, histories.items)
    total = scores.new_zeros(len(histories)).index_add(0, histories.owners, picked)
    return torch.logsumexp(scores, dim=1) - total / histories.lengths().clamp(min=1)


def bce(scores: Tensor, histories: Histories, settings: LocalSettings, salt: int) -> Tensor:
    """Binary cross-entropy over a user's events and `settings.negatives` sampled items for each: the mean of all terms."""
    negatives = sample_negatives(histories, settings.negatives, salt)
    owners = histories.owners.repeat_interleave(settings.negatives)
    positive = softplus(-_pick(scores, histories.owners, histories.items))
    negative = softplus(_pick(scores, owners, negatives.flatten()))
    total = scores.new_zeros(len(histories)).index_add(0, histories.owners, positive).index_add(0, owners, negative)
    return total / (histories.lengths().clamp(min=1) * (1 + settings.negatives))


LOSSES: dict[str, Loss] = {"softmax": softmax, "bce": bce}


def sample_negatives(histories: Histories, per_event: int, salt: int, attempts: int = 20) -> Tensor:
    """Draw items outside each user's own history, [n_events, per_event], by user, event and `salt`.

    A draw that hits the history is drawn again, `attempts` times at most: after that it stays, which happens only to users who
    have almost the whole catalogue.
    """
    keys = histories.keys[histories.owners][:, None]
    position = histories.items[:, None] * per_event + torch.arange(per_event, device=histories.items.device)
    owned = torch.sort(histories.owners * histories.n_items + histories.items).values
    offset = histories.owners[:, None] * histories.n_items

    drawn = _draw(keys, position, salt, 0, histories.n_items)
    for attempt in range(1, attempts):
        clash = torch.isin(offset + drawn, owned, assume_unique=False)
        if not clash.any():
            break
        drawn = torch.where(clash, _draw(keys, position, salt, attempt, histories.n_items), drawn)
    return drawn


def _draw(keys: Tensor, position: Tensor, salt: int, attempt: int, n_items: int) -> Tensor:
    # The modulo's bias is below n_items / 2^62.
    return (seeds.mix(keys, position, salt, attempt) & 0x3FFFFFFFFFFFFFFF) % n_items


def _pick(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read scores at (row, column) pairs; one flat gather has a cheaper gradient than two-dimensional indexing."""
    return scores.flatten().index_select(0, rows * scores.shape[1] + columns)
