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

from tessera.common.metrics.names import HR, NDCG, USERS, MetricName


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
    candidates = candidates.scatter(1, targets[:, None], True)
    # Counted in int32: torch adds booleans up as int64 forty times slower.
    above = ((scores > own) & candidates).sum(1, dtype=torch.int32)
    ties = ((scores == own) & candidates).sum(1, dtype=torch.int32)
    return above.long(), ties.long()


def hit_rate(above: Tensor, ties: Tensor, k: int) -> Tensor:
    """Expected HR@k of each user, [n_users]: the share of the tied positions that lie within the first k."""
    return (k - above).clamp(min=0).minimum(ties) / ties


def ndcg(above: Tensor, ties: Tensor, k: int) -> Tensor:
    """Expected NDCG@k of each user with one target, [n_users]: the mean of 1 / log2(position + 2) over tied positions."""
    gains = 1 / torch.log2(torch.arange(k, dtype=torch.float64, device=above.device) + 2)
    before = torch.cat([gains.new_zeros(1), gains.cumsum(0)])
    first, last = above.clamp(max=k), (above + ties).clamp(max=k)
    return (before[last] - before[first]) / ties


def ranking_sums(part: str, above: Tensor, ties: Tensor, groups: Mapping[str, Tensor], ks: Sequence[int]) -> MetricSums:
    """Sum HR@k and NDCG@k of a part over the users of each group, boolean masks [n_users], and count these users."""
    sums: dict[MetricName, float] = {}
    values = {(HR, k): hit_rate(above, ties, k) for k in ks} | {(NDCG, k): ndcg(above, ties, k) for k in ks}
    for group, members in groups.items():
        sums[MetricName(part, group, USERS)] = float(members.sum())
        for (metric, k), each in values.items():
            sums[MetricName(part, group, metric, k)] = float(each[members].double().sum())
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
    """The same means in %; numbers of users as they are."""
    return {name: value if name.counts else 100 * value for name, value in ranking_means(sums).items()}
