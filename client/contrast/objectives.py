"""VLM2Rec's losses on the device, which look at each view by itself too (arXiv 2603.17450, section 4.2), with corrections.

The paper's negatives and candidates are the batch's. Here people are alone: the fused negatives are the whole catalogue, and
views are compared on items that are drawn by (run, round, local epoch), the same for everybody, so that who trains beside whom
changes nothing.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tessera.client.histories import Histories
from tessera.client.losses import Scores, pick, without_cold
from tessera.common.registry.losses import CRTRSettings, WPCLSettings
from tessera.common.utils import counter_rng


def wpcl(scored: Scores, histories: Histories, settings: WPCLSettings, salt: int) -> Tensor:
    """Weak-modality penalised contrast (Eq. 6-10) and `relation` times CRTR (Eq. 14): the mean over a user's events of
    -log (e^p / (e^p + w sum_n e^s_n)), with p the event's score, s_n those of all other items, and
    w = 1 + penalty (softplus(slope gap) - ln 2).

    ln 2 makes w 1 where views are equally strong, as the text says and Eq. 9 does not; penalty and slope are constants, since
    descent on them only ever shrinks the penalty. With w = 1 this is `softmax`, exactly.
    """
    scores = without_cold(histories, scored.everything(), -torch.inf)
    picked, everything = pick(scores, histories.owners, histories.items), torch.logsumexp(scores, dim=1)
    compared = Compared.of(scored, histories, settings, salt)
    gap = compared.gap(settings.hold_strong)
    weight = 1 + settings.penalty * (softplus(settings.penalty_slope * gap) - math.log(2))
    usual = everything[histories.owners] - picked
    share = torch.exp(-usual)  # of the event in the softmax: its own term is not weighed
    losses = usual + torch.log(weight - (weight - 1) * share)
    if settings.relation:
        losses = losses + settings.relation * compared.disagreement(settings)
    return _mean(losses, histories)


def crtr(scored: Scores, histories: Histories, settings: CRTRSettings, salt: int) -> Tensor:
    """Cross-modal relational topology regularisation alone (Eq. 11-13): how far views disagree about which of the drawn items
    are near a user's history, in the mean of the user's events. 0 if and only if they agree on each item's share."""
    return _mean(Compared.of(scored, histories, settings, salt).disagreement(settings), histories)


class Compared:
    """What each view says of the events that are asked for, `own` [n_events, n_views], and of the drawn items, `others`
    [n_events, n_views, n_drawn]: cosines. `counts` [n_events, n_drawn] is false where a drawn item is the event's own."""

    def __init__(self, own: Tensor, others: Tensor, counts: Tensor) -> None:
        self.own, self.others, self.counts = own, others, counts

    @classmethod
    def of(cls, scored: Scores, histories: Histories, settings: CRTRSettings, salt: int) -> "Compared":
        """Compare on the items of this step."""
        drawn, owners = drawn_items(histories, settings.drawn_items, salt), histories.owners
        found = scored.alone(torch.cat([drawn, histories.items]))
        places = len(drawn) + torch.arange(len(owners), device=owners.device)
        return cls(found[owners, :, places], found[owners, :, : len(drawn)], drawn != histories.items[:, None])

    def margins(self) -> Tensor:
        """How clearly each view tells the event from the drawn items, [n_events, n_views] (Eq. 6)."""
        counts = self.counts.to(self.own.dtype)[:, None]
        return self.own - (self.others * counts).sum(2) / counts.sum(2).clamp(min=1)

    def gap(self, hold_strong: bool) -> Tensor:
        """How far the weakest view is behind the strongest, [n_events] (Eq. 7-8)."""
        margins = self.margins()
        strong = margins.amax(1)
        return (strong.detach() if hold_strong else strong) - margins.amin(1)

    def disagreement(self, settings: CRTRSettings) -> Tensor:
        """Kullback-Leibler divergence between what two views make of the drawn items, in the mean over all ordered pairs of
        views, [n_events] (Eq. 13)."""
        logs = torch.log_softmax(self.others / settings.relation_temperature, dim=2)
        if settings.guide == "strong":
            best = torch.nn.functional.one_hot(self.margins().argmax(1), logs.shape[1])[:, :, None].bool()
            logs = torch.where(best, logs.detach(), logs)
        apart = logs[:, :, None] - logs[:, None]
        pairs = logs.shape[1] * (logs.shape[1] - 1)
        return (logs.exp()[:, :, None] * apart).sum((1, 2, 3)) / max(1, pairs)


def drawn_items(histories: Histories, count: int, salt: int) -> Tensor:
    """At most `count` items without repetition, none of them cold, by the salt alone: the same for everybody, [n_drawn]."""
    items = torch.arange(histories.n_items, device=histories.items.device)
    if histories.cold_items is not None:
        items = items[~histories.cold_items]
    order = counter_rng.uniform(counter_rng.key("drawn items", salt), items)
    return items[order.argsort(stable=True)[:count]]


def _mean(values: Tensor, histories: Histories) -> Tensor:
    """The mean over each user's events, [n_users]; 0 for who has none."""
    total = values.new_zeros(len(histories)).index_add(0, histories.owners, values)
    return total / histories.lengths().clamp(min=1)
