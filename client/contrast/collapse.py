"""Evaluates each view by itself on the device, so that it shows where one of them has collapsed; what leaves is sums.

VLM2Rec (arXiv 2603.17450) asks two things of a view: how well it ranks alone on the history's side (Fig. 1a: text to fused,
vision to fused), and how it lies on the unit sphere (Table 1, see `tessera.common.metrics.collapse`).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tessera.client.backbones import Comparison
from tessera.client.evaluation import candidates_of, exclude, places, standings
from tessera.client.histories import Histories, histories
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets
from tessera.common.metrics.collapse import ALIGNMENT, DISTANCE, UNIFORMITY
from tessera.common.metrics.names import ALL, BY, TEST, VALIDATION, MetricName
from tessera.common.metrics.ranking import MetricSums, ranking_sums

Comparer = Callable[[Histories], Comparison]


def collapse_sums(
    compare: Comparer, split: Split, settings: EvaluationSettings, views: Sequence[str], device: torch.device
) -> MetricSums:
    """Sums over the people of `split` of how each view ranks alone, and how histories and items lie in it and in all together.

    Candidates are as in `tessera.client.evaluation.evaluate`.
    """
    dtype, total = torch.get_default_dtype(), MetricSums()
    known = histories(split).to(device, dtype)
    candidates = candidates_of(known, split)
    found = compare(known)
    for part, targets in ((VALIDATION, split.validation), (TEST, split.test)):
        if part == TEST:
            exclude(candidates, split.validation)
            if settings.history_at_test == "train+validation":
                found = compare(histories(split, split.validation).to(device, dtype))
        if not len(targets):
            continue
        total += _geometry(part, ALL, found.fused, candidates, targets)
        for place, view in enumerate(views):
            total += _geometry(part, BY.format(view), found.alone[:, place], candidates, targets)
            total += _ranked(part, BY.format(view), found.crossed[:, place], candidates, targets, settings)
    return total


def _ranked(
    part: str, group: str, scores: Tensor, candidates: Tensor, targets: Targets, settings: EvaluationSettings
) -> MetricSums:
    rows, items = places(targets, scores.device)
    above, ties = standings(scores, candidates, rows, items)
    everybody = {group: torch.ones_like(items, dtype=torch.bool)}
    return ranking_sums(part, rows, above, ties, everybody, settings.ks, settings.metrics)


def _geometry(part: str, group: str, cosines: Tensor, candidates: Tensor, targets: Targets) -> MetricSums:
    """Sums over people of the means over their targets; |z - e|^2 = 2 - 2 cos."""
    rows, items = places(targets, cosines.device)
    quarters = (1 - cosines.double().clamp(-1, 1)) / 2  # of the squared distance
    own = quarters[rows, items]
    others = candidates[rows].scatter(1, items[:, None], False)
    away = (quarters[rows] * others).sum(1) / others.sum(1).clamp(min=1)
    spread = torch.exp(-8 * quarters).mean(1)[rows]
    share = 1 / torch.bincount(rows, minlength=len(cosines))[rows].double()
    values = {ALIGNMENT: own, DISTANCE: away, UNIFORMITY: spread}
    return MetricSums.of_metrics(
        {MetricName(part, group, name): float((value * share).sum()) for name, value in values.items()}
    )
