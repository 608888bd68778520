"""Losses on the device: each maps what a prediction model scores to one value a user, [n_users]."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import binary_cross_entropy_with_logits

from tessera.client.histories import Histories
from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.losses import LOSSES, BCESettings, SquaresSettings
from tessera.common.registry.registry import resolve
from tessera.common.utils import counter_rng

SPARE = 16


class Scores(Protocol):
    """Scores of some users and the catalogue, as far as a loss asks for them."""

    def everything(self) -> Tensor:
        """All of them, [n_users, n_items]."""

    def pairs(self, users: Tensor, items: Tensor) -> Tensor:
        """Those of users and items side by side, [n_pairs] each."""

    def contrast(self, asked: Histories) -> tuple[Tensor, Tensor]:
        """The logarithm of the sum of exp of a user's scores of all items but cold ones, and the sum of those of the events
        that are `asked` for, [n_users] each."""

    def alone(self, items: Tensor) -> Tensor:
        """Cosines of each user's history and some items, both in one view, [n_users, n_views, n_asked]."""


Loss = Callable[[Scores, Histories, Any, int], Tensor]
"""From scores, the histories that are asked for, the loss's own settings and a salt for its draws."""


def find_loss(settings: ComponentSettings) -> Loss:
    """The loss that settings choose. Raises `ConfigError` where it cannot be imported."""
    found: Loss = resolve(LOSSES[settings.name].implementation)
    return found


def softmax(scored: Scores, histories: Histories, settings: ComponentSettings, salt: int) -> Tensor:
    """Full-catalogue softmax: the mean over a user's events of -log softmax(scores)_i."""
    everything, events = scored.contrast(histories)
    return everything - events / histories.lengths().clamp(min=1)


def bce(scored: Scores, histories: Histories, settings: BCESettings, salt: int) -> Tensor:
    """Binary cross-entropy over a user's events and `settings.negatives` sampled items for each: the mean of all terms."""
    negatives = sample_negatives(histories, settings.negatives, salt).flatten()
    users = torch.cat([histories.owners, histories.owners.repeat_interleave(settings.negatives)])
    scores = scored.pairs(users, torch.cat([histories.items, negatives]))
    labels = torch.zeros_like(scores)
    labels[: len(histories.items)] = 1
    terms = binary_cross_entropy_with_logits(scores, labels, reduction="none")
    total = scores.new_zeros(len(histories)).index_add(0, users, terms)
    return total / (histories.lengths().clamp(min=1) * (1 + settings.negatives))


def squares(scored: Scores, histories: Histories, settings: SquaresSettings, salt: int) -> Tensor:
    """Confidence-weighted squares over the whole catalogue (Hu, Koren & Volinsky 2008), divided by the number of items.

    An event counts 1 + confidence times and should score 1; anything else counts once and should score 0.
    """
    scores = scored.everything()
    everything = (without_cold(histories, scores, 0.0) ** 2).sum(1)
    picked = pick(scores, histories.owners, histories.items)
    events = (1 + settings.confidence) * (1 - picked) ** 2 - picked**2
    return everything.index_add(0, histories.owners, events) / histories.n_items


def sample_negatives(histories: Histories, per_event: int, salt: int) -> Tensor:
    """Draw items outside each user's own history, and not cold, [n_events, per_event], by user, event and `salt`.

    A draw that hits the history is replaced by the first of `SPARE` spare draws that does not; where all do, which
    happens only to users who have almost the whole catalogue, it stays.
    """
    people, n_items, salt = histories, histories.n_items, counter_rng.key("negatives", salt)
    keys, base = people.keys[people.owners][:, None], (people.owners * n_items)[:, None]
    positions = people.items[:, None] * per_event + torch.arange(per_event, device=people.items.device)
    taken = people.mask() if people.cold_items is None else people.mask() | people.cold_items
    owned = taken.flatten()

    drawn = _draw(salt, keys, positions) % n_items
    event, place = owned[base + drawn].nonzero(as_tuple=True)
    attempts = torch.arange(SPARE, device=event.device)
    spare = _draw(salt, keys[event], positions[event, place][:, None], attempts) % n_items
    first_free = (~owned[base[event] + spare]).byte().argmax(1, keepdim=True)
    drawn[event, place] = spare.gather(1, first_free)[:, 0]
    return drawn


def contrast(scores: Tensor, asked: Histories) -> tuple[Tensor, Tensor]:
    """`Scores.contrast` of scores [n_users, n_items] that are there already."""
    rows = asked.owners * scores.shape[1] + asked.items
    known = without_cold(asked, scores, -torch.inf)
    totals, events = _Contrast.apply(scores, known.detach(), asked.owners, rows)  # type: ignore[no-untyped-call]
    return totals, events


class _Contrast(torch.autograd.Function):
    """Makes one table of gradients, and no other beside the scores."""

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor, known: Tensor, owners: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        totals = torch.logsumexp(known, dim=1)
        events = scores.new_zeros(len(scores)).index_add_(0, owners, scores.flatten()[rows])
        ctx.save_for_backward(known, totals, owners, rows)
        return totals, events

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        known, totals, owners, rows = ctx.saved_tensors  # type: ignore[attr-defined]
        by_total, by_event = gradients
        found = (known - totals[:, None]).exp_().mul_(by_total[:, None])
        found.view(-1).index_add_(0, rows, by_event[owners])
        return found, None, None, None


def without_cold(histories: Histories, scores: Tensor, value: float) -> Tensor:
    """Scores with `value` for items that training must not know of."""
    return scores if histories.cold_items is None else scores.masked_fill(histories.cold_items, value)


def _draw(salt: int, *counters: Tensor) -> Tensor:
    """Non-negative hashes; taken modulo n_items their bias is below n_items / 2^62."""
    return counter_rng.mix(salt, *counters) & 0x3FFFFFFFFFFFFFFF


def pick(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read scores at (row, column) pairs; one flat gather has a cheaper gradient than two-dimensional indexing."""
    return scores.flatten().index_select(0, rows * scores.shape[1] + columns)
