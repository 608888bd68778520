"""Ranks the whole catalogue for each user on the device; what leaves is sums."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tessera.client.histories import Histories, histories
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets
from tessera.common.metrics.names import ALL, COLD, SAMPLED, TEST, VALIDATION, WARM
from tessera.common.metrics.ranking import MetricSums, ranking_sums, standing
from tessera.common.protocol.messages import CONTENT, COUNTS
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils import counter_rng

CPU = torch.device("cpu")
Scorer = Callable[[Histories], Tensor]
"""From users' histories to scores of the catalogue, [n_users, n_items]."""


def evaluate(
    scorer: Scorer, split: Split, settings: EvaluationSettings, counts: Tensor | None, device: torch.device = CPU
) -> MetricSums:
    """Rank the catalogue for the validation and the test items of every user of `split`; without any nobody is scored.

    Training items are no candidates, nor are retired ones; at test neither are the validation items. With `counts` [n_items],
    how often each item occurs in anybody's training data, targets are counted apart: warm or cold. Also counts users whose
    scores are all the same or not finite; one such user makes the run stop.
    """
    if not len(split.validation) and not len(split.test):
        return MetricSums({"evaluated": float(len(split.users))})
    dtype = torch.get_default_dtype()
    known = histories(split).to(device, dtype)
    shown = settings.history_at_test == "train+validation"
    scores = scorer(known)
    scores_at_test = scorer(histories(split, split.validation).to(device, dtype)) if shown else scores
    candidates = candidates_of(known, split)
    total = MetricSums(_degenerate(scores, scores_at_test, candidates, known.lengths() > 0))
    total += _part(VALIDATION, scores, candidates, split.validation, counts, settings)
    total += _among_drawn(VALIDATION, scores, candidates, split.validation, split.users, settings)
    exclude(candidates, split.validation)
    total += _part(TEST, scores_at_test, candidates, split.test, counts, settings)
    return total + _among_drawn(TEST, scores_at_test, candidates, split.test, split.users, settings)


def as_group(sums: MetricSums, group: str) -> MetricSums:
    """Sums of people who are reported apart: what was called "all" is called `group`; of the rest only faults are kept."""
    apart = {name.within(group): value for name, value in sums.metrics().items() if name.group == ALL}
    return MetricSums.of_metrics(apart) + MetricSums({"nonfinite": sums["nonfinite"]})


def baselines(split: Split, settings: EvaluationSettings, inputs: Tensors, device: torch.device = CPU) -> MetricSums:
    """Evaluate what needs no learning, each as "name/..." sums: the trivial rankings beside every result. Also counts users."""
    counts = inputs.get(COUNTS)
    order = torch.arange(split.n_items, dtype=torch.get_default_dtype(), device=device)
    # Constant scores are worth what a random order is worth, exactly.
    fixed = {"random": torch.zeros_like(order), "item-id": -order, "item-id-descending": order}
    if counts is not None:
        fixed |= {"popularity": counts, "inverse-popularity": -counts}
    scorers: dict[str, Scorer] = {name: _constant(vector) for name, vector in fixed.items()}
    tables = {name.removeprefix(CONTENT): table for name, table in inputs.items() if name.startswith(CONTENT)}
    scorers |= {f"content-{name}": _content(table) for name, table in tables.items()}
    if len(tables) > 1:
        scorers["content-all"] = _content(torch.cat(list(tables.values()), dim=1))
    total = MetricSums({"evaluated": float(len(split.users))})
    for name, scorer in scorers.items():
        sums = evaluate(scorer, split, settings, counts, device)
        total += MetricSums.of_metrics({own.of(name): value for own, value in sums.metrics().items()})
    return total


def _part(
    part: str,
    scores: Tensor,
    candidates: Tensor,
    targets: Targets,
    counts: Tensor | None,
    settings: EvaluationSettings,
) -> MetricSums:
    rows, items = places(targets, scores.device)
    above, ties = standings(scores, candidates, rows, items)
    groups = {ALL: torch.ones_like(items, dtype=torch.bool)}
    if counts is not None:
        warm = counts[items] > 0
        groups |= {WARM: warm, COLD: ~warm}
    return ranking_sums(part, rows, above, ties, groups, settings.ks, settings.metrics)


def _among_drawn(
    part: str,
    scores: Tensor,
    candidates: Tensor,
    targets: Targets,
    users: Sequence[str],
    settings: EvaluationSettings,
) -> MetricSums:
    """Rank targets among drawn candidates instead of all; nothing where none are asked for."""
    if not settings.sampled_candidates:
        return MetricSums()
    rows, items = places(targets, scores.device)
    drawn = drawn_candidates(part, candidates, targets, users, settings.sampled_candidates)
    above, ties = standings(scores, drawn, rows, items)
    everybody = {SAMPLED: torch.ones_like(items, dtype=torch.bool)}
    return ranking_sums(part, rows, above, ties, everybody, settings.ks, settings.metrics)


def drawn_candidates(part: str, candidates: Tensor, targets: Targets, users: Sequence[str], count: int) -> Tensor:
    """Of each user's candidates that are not asked for, `count` or as many as there are, [n_users, n_items] boolean: by part,
    user and item alone, so that every run ranks among the same."""
    others, items = candidates.clone(), torch.arange(candidates.shape[1])
    exclude(others, targets)
    draws = counter_rng.uniform(
        counter_rng.key("sampled candidates", part), counter_rng.user_keys(users)[:, None], items
    )
    draws = draws.to(others.device).masked_fill(~others, torch.inf)
    chosen = draws.topk(min(count, len(items)), dim=1, largest=False).indices
    return torch.zeros_like(others).scatter(1, chosen, True) & others


def places(targets: Targets, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of people and their items, [n_targets] each."""
    return torch.from_numpy(targets.owners).to(device), torch.from_numpy(targets.items).to(device)


def candidates_of(known: Histories, split: Split) -> Tensor:
    """Which items may be recommended to whom, [n_users, n_items] boolean: not what they had, nor what is retired."""
    candidates = ~known.mask()
    if split.retired is not None:
        candidates &= ~torch.from_numpy(split.retired).to(candidates.device)
    return candidates


def exclude(candidates: Tensor, targets: Targets) -> None:
    """Let people's targets be no candidates any more."""
    candidates[places(targets, candidates.device)] = False


def standings(scores: Tensor, candidates: Tensor, rows: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
    """How many candidates are above each target, and how many beside it, [n_targets] each."""
    if torch.equal(rows, torch.arange(len(scores), device=rows.device)):  # one each: nothing need be copied
        return standing(scores, items, candidates)
    found = [standing(scores[one], items[at], candidates[one]) for one, at in _batches(rows, len(scores))]
    above, ties = (torch.cat(parts) for parts in zip(*found, strict=True))
    return above, ties


def _batches(rows: Tensor, size: int) -> Iterator[tuple[Tensor, slice]]:
    """Rows of targets, as many at a time as there are people: several of one person need no more memory."""
    for start in range(0, max(1, len(rows)), size):
        yield rows[start : start + size], slice(start, start + size)


def _degenerate(scores: Tensor, scores_at_test: Tensor, candidates: Tensor, active: Tensor) -> dict[str, float]:
    """Count users whose scores are all the same, where there is a history to tell items apart by, or not finite."""
    finite = _finite(scores) & (True if scores_at_test is scores else _finite(scores_at_test))
    first = candidates.byte().argmax(1, keepdim=True)
    # Most people's first candidate is below another: only of the others need all be looked at.
    suspects = (active & finite & ~(scores > scores.gather(1, first)).logical_and_(candidates).any(1)).nonzero()[:, 0]
    own, among = scores[suspects], candidates[suspects]
    low = own.masked_fill(~among, torch.inf).amin(1)
    constant = (low == own.gather(1, first[suspects])[:, 0]) & (among.sum(1) > 1)
    return {"evaluated": float(len(scores)), "constant": float(constant.sum()), "nonfinite": float((~finite).sum())}


def _finite(scores: Tensor) -> Tensor:
    """Whether all of a user's scores are, [n_users]: seen in the least and the largest, which nan and infinity reach."""
    low, high = torch.aminmax(scores, dim=1)
    return low.isfinite() & high.isfinite()


def _constant(vector: Tensor) -> Scorer:
    return lambda users: vector.expand(len(users), -1)


def _content(table: Tensor) -> Scorer:
    """Cosine of an item with the mean of the user's items; `table` has unit rows, [n_items, width]."""
    return lambda users: users.total(table) @ table.T
