"""Measures how well items are ranked, HR and NDCG, fairly where scores are tied; only sums over people leave a device.

A tied target counts by its expected value over all orders of the tied items.

A target with `above` candidates scored higher and `ties` candidates (itself included) scored the same is at each of the
positions above, ..., above + ties - 1 (from 0) with equal chance. So constant scores give HR@K = K / candidates, whatever
the order of the items.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tessera.common.metrics.collapse import GEOMETRY, geometry
from tessera.common.metrics.names import HR, NDCG, TOKEN_LOSS, USERS, MetricName
from tessera.common.metrics.several import person_values
from tessera.common.metrics.single import hit_rate, ndcg

__all__ = ["MetricSums", "hit_rate", "ndcg", "percentages", "ranking_means", "ranking_sums", "standing"]


@dataclass(frozen=True)
class MetricSums:
    """Named sums that add: (a + b)[name] = a[name] + b[name]. A mean is a sum divided by a count when all is in."""

    values: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """Add name by name; a name absent on one side counts as 0 there."""
        total = Counter[str](dict(self.values))
        total.update(dict(other.values))
        return MetricSums(dict(total))

    def __getitem__(self, name: str) -> float:
        """Return the sum called `name`, 0 when nothing was added to it."""
        return self.values.get(name, 0.0)

    def metrics(self) -> dict[MetricName, float]:
        """The sums that are of metrics; the others have plain names. Raises `DataError` for a name that is neither."""
        return {MetricName.parse(name): value for name, value in self.values.items() if "/" in name}

    @classmethod
    def of_metrics(cls, metrics: Mapping[MetricName, float]) -> "MetricSums":
        """Sums of metrics by their written names."""
        return cls({str(name): value for name, value in metrics.items()})

    def mean(self, name: str, count: str) -> float | None:
        """Sum `name` over sum `count`; None when nothing was counted."""
        return self[name] / self[count] if self[count] else None


def standing(scores: Tensor, targets: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Where each user's target stands: how many candidates score above it, and how many the same, itself included.

    `scores` [n_users, n_items], `targets` [n_users] item indices, `candidates` [n_users, n_items] boolean. The target is
    always a candidate, so `ties` >= 1. Both results are int64 [n_users].
    """
    own = scores.gather(1, targets[:, None])
    # Counted in int32: torch adds booleans up as int64 forty times slower.
    above = (scores > own).logical_and_(candidates).sum(1, dtype=torch.int32)
    ties = (scores == own).logical_and_(candidates).sum(1, dtype=torch.int32)
    return above.long(), ties + (~candidates.gather(1, targets[:, None]))[:, 0].long()


def ranking_sums(
    part: str,
    owners: Tensor,
    above: Tensor,
    ties: Tensor,
    groups: Mapping[str, Tensor],
    ks: Sequence[int],
    metrics: Sequence[str] = (HR, NDCG),
) -> MetricSums:
    """Sum metrics of a part over the people of each group, and count these people.

    `owners` [n_targets] are rows of people, sorted. Groups are boolean masks [n_targets]: a person is in one with the targets
    of theirs that are, and those alone are asked for there.
    """
    sums: dict[MetricName, float] = {}
    single = not bool((owners[1:] == owners[:-1]).any())
    _, values = person_values(owners, above, ties, metrics, ks) if single else (None, {})
    for group, members in groups.items():
        if single:
            count, own = float(members.sum()), {name: each[members] for name, each in values.items()}
        else:
            people, own = person_values(owners[members], above[members], ties[members], metrics, ks)
            count = float(len(people))
        sums[MetricName(part, group, USERS)] = count
        for (metric, k), each in own.items():
            sums[MetricName(part, group, metric, k)] = float(each.double().sum())
    return MetricSums.of_metrics(sums)


def ranking_means(sums: MetricSums) -> dict[MetricName, float]:
    """Turn sums of metrics, added up over devices, into means by the same names, and numbers of users; empty groups are left
    out."""
    metrics, means = sums.metrics(), {}
    for name, value in metrics.items():
        if users := metrics.get(name.users, 0.0):
            means[name] = users if name.counts else value / users
    return means


def percentages(sums: MetricSums) -> dict[MetricName, float]:
    """The same means in %; numbers of users and losses as they are, and what tells how views lie in units of their
    own."""
    means = ranking_means(sums)
    found = {
        name: value if name.counts or name.metric == TOKEN_LOSS else 100 * value
        for name, value in means.items()
        if name.metric not in GEOMETRY
    }
    return found | geometry(means)
