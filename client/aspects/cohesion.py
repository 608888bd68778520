"""Says how alike the items of a person's history are in each view, and what that tells a router before it has learnt.

People go by what the items of their history have in common: whoever buys what looks alike goes by pictures. A view counts the
more for a person, the more alike their items are in it beside how alike people's items are in it on average. The average is a
sum over people, which no device knows alone: each round's training brings that of the next (COHESION in
`tessera.common.protocol.messages`). Nothing of it is learnt, and no gradient goes through it.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from tessera.client.histories import Histories

SMOOTHING = 0.1
"""Share of people's average that is added to a person's own: a view in which they have nothing in common keeps a little."""
NEAR = 0.01
"""An item this near to the mean of all, as a share of the usual distance, has no direction: it shows nothing in the view."""


@torch.no_grad()
def cohesion(histories: Histories, views: Tensor) -> Tensor:
    """Mean cosine of two shown items of a user in each view, [n_users, n_views], 0 at least; as events count.

    Items are looked at from the mean of all, and in `views` [n_views, n_items, dim] that are scaled or rotated they are as
    alike as before. Items that are at the mean, such as those without a picture, are left out there. It is nan where fewer
    than two events are left.
    """
    views = views.detach() - views.detach().mean(1, keepdim=True)
    norms = views.norm(dim=2)
    there = norms > NEAR * norms.square().mean(1, keepdim=True).sqrt()  # [n_views, n_items]
    units = views * (there / norms.clamp(min=torch.finfo(norms.dtype).tiny))[:, :, None]
    shown, owners = histories.shown[:, None] * there.T[histories.items], histories.owners
    counts, squares = (shown.new_zeros(len(histories), len(views)).index_add(0, owners, a) for a in (shown, shown**2))
    pairs = counts**2 - squares  # sum_ik a_i a_k over i != k, for events that count a
    several = pairs > squares * torch.finfo(shown.dtype).eps ** 0.5
    products = histories.pooled(units).square().sum(2) - squares
    return torch.clamp(products / pairs.where(several, torch.nan), min=0)


def prior(histories: Histories, views: Tensor, mean: Tensor) -> Tensor:
    """What is added to a router's logits, times a power: log((e_uj + s m_j) / (m_j + s m_j)), [n_users, n_views].

    e is `cohesion`, m its `mean` over people [n_views], and s = 0.1. It is 0 where nothing is known: of users of whom fewer
    than two items are shown, and of views without a mean, such as a device's own.
    """
    mean = pad(mean, (0, len(views) - len(mean))).to(views)
    found = torch.log((cohesion(histories, views) + SMOOTHING * mean) / ((1 + SMOOTHING) * mean))
    return found.nan_to_num(0, posinf=0, neginf=0)


def cohesion_sum(histories: Histories, views: Tensor) -> Tensor:
    """In each view the sum over users of their `cohesion`, and over how many users it is, [2, n_views]."""
    found = cohesion(histories, views)
    return torch.stack([found.nansum(0), (~found.isnan()).sum(0)]).float()
