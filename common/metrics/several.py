"""Measures how several targets of a person are ranked, fairly where scores are tied.

Every figure is the expected value over all orders of tied candidates, as McSherry & Najork (2008, "Computing Information
Retrieval Performance Measures Efficiently in the Presence of Tied Scores") have it. Of a person's targets, those with one
score are a tie group: `above` candidates are scored higher, `ties` the same, `hits` of them targets. With one target a person
the figures are those of `tessera.common.metrics.single`. Where nothing is tied they are those of trec_eval: success, recall,
ndcg_cut, recip_rank within the first K, and map_cut, which divides by the number of all targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.common.metrics.names import HR, MAP, NDCG, RECALL
from tessera.common.metrics.single import hit_rate, ndcg

Values = dict[tuple[str, int], Tensor]
"""A figure of each person, float64 [n_people], by metric and K."""


@dataclass(frozen=True)
class _Groups:
    """Tie groups, person after person, the best first: how they stand, [n_groups], and whose they are."""

    owners: Tensor
    above: Tensor
    ties: Tensor
    hits: Tensor
    before: Tensor
    """How many targets of the same person are in better groups."""
    first: Tensor
    """Whether it is a person's best group."""


def person_values(
    owners: Tensor, above: Tensor, ties: Tensor, metrics: Sequence[str], ks: Sequence[int]
) -> tuple[Tensor, Values]:
    """Who has targets, [n_people] in order, and each one's figures.

    `owners` [n_targets] are rows of people, sorted; `above` and `ties` [n_targets] say where a target stands, see
    `tessera.common.metrics.ranking.standing`.
    """
    people, places, counts = torch.unique_consecutive(owners, return_inverse=True, return_counts=True)
    if len(people) == len(owners):
        return people, {(metric, k): _of_one(metric, above, ties, k) for metric in metrics for k in ks}
    groups = _groups(places, above, ties)
    found: Values = {}
    for k in ks:
        for metric in metrics:
            if metric in (NDCG, RECALL):
                gains = ndcg(above, ties, k) if metric == NDCG else hit_rate(above, ties, k).double()
                best = _ideal(counts, k) if metric == NDCG else counts.double()
                found[metric, k] = _added(places, gains.double(), len(people)) / best
            elif metric == MAP:
                found[metric, k] = _added(groups.owners, _precision(groups, k), len(people)) / counts
            else:
                reached = _reached(groups, k) if metric == HR else _reciprocal(groups, k)
                found[metric, k] = _added(groups.owners, reached.where(groups.first, 0.0), len(people))
    return people, found


def _of_one(metric: str, above: Tensor, ties: Tensor, k: int) -> Tensor:
    """The figure of people with one target each: found is found, and precision at the only place is its reciprocal."""
    if metric in (HR, RECALL):
        return hit_rate(above, ties, k)
    if metric == NDCG:
        return ndcg(above, ties, k)
    ones = torch.ones_like(ties)
    return _reciprocal(_Groups(torch.arange(len(above)), above, ties, ones, ones - 1, ones.bool()), k)


def _groups(owners: Tensor, above: Tensor, ties: Tensor) -> _Groups:
    """Put targets of one person and one score together."""
    order = torch.argsort(owners * (above.max() + 1) + above)
    keys = torch.stack([owners, above, ties], dim=1)[order]
    kept, hits = torch.unique_consecutive(keys, dim=0, return_counts=True)
    whose, first = kept[:, 0], torch.ones(len(kept), dtype=torch.bool, device=kept.device)
    first[1:] = whose[1:] != whose[:-1]
    so_far = hits.cumsum(0) - hits
    before = so_far - so_far[first][whose]
    return _Groups(whose, kept[:, 1], kept[:, 2], hits, before, first)


def _added(owners: Tensor, values: Tensor, n_people: int) -> Tensor:
    return torch.zeros(n_people, dtype=torch.float64, device=values.device).index_add_(0, owners, values.double())


def _ideal(counts: Tensor, k: int) -> Tensor:
    """DCG at K of a ranking with all of a person's targets in front."""
    gains = 1 / torch.log2(torch.arange(k, dtype=torch.float64, device=counts.device) + 2)
    return gains.cumsum(0)[counts.clamp(max=k) - 1]


def _missed(groups: _Groups, k: int) -> Tensor:
    """Chance that none of a group's targets is among its first j tied candidates, [n_groups, k + 1] for j = 0 to k."""
    places = torch.arange(k, dtype=torch.float64, device=groups.ties.device)
    left = (groups.ties[:, None] - places).clamp(min=1)
    ratios = ((groups.ties - groups.hits)[:, None] - places).clamp(min=0) / left
    return torch.cat([ratios.new_ones(len(ratios), 1), ratios.cumprod(1)], dim=1)


def _inside(groups: _Groups, k: int) -> Tensor:
    """How many of a group's positions are within the first K, [n_groups]."""
    return (k - groups.above).clamp(min=0).minimum(groups.ties)


def _reached(groups: _Groups, k: int) -> Tensor:
    """Chance that a target of a group is within the first K."""
    some = 1 - _missed(groups, k).gather(1, _inside(groups, k)[:, None])[:, 0]
    return torch.where(groups.hits == 1, hit_rate(groups.above, groups.ties, k).double(), some)


def _reciprocal(groups: _Groups, k: int) -> Tensor:
    """Expected 1 / position of a group's first target, 0 beyond K."""
    missed, places = _missed(groups, k), torch.arange(k, device=groups.ties.device)
    shown = places < _inside(groups, k)[:, None]
    return ((missed[:, :-1] - missed[:, 1:]) / (groups.above[:, None] + places + 1)).where(shown, 0.0).sum(1)


def _precision(groups: _Groups, k: int) -> Tensor:
    """Expected sum, over a group's targets within the first K, of the precision at their positions."""
    places = torch.arange(k, device=groups.ties.device)
    shown = places < _inside(groups, k)[:, None]
    others = places * ((groups.hits - 1).double() / (groups.ties - 1).clamp(min=1))[:, None]
    found = groups.before[:, None] + 1 + others
    each = (groups.hits.double() / groups.ties)[:, None] * found / (groups.above[:, None] + places + 1)
    return each.where(shown, 0.0).sum(1)
