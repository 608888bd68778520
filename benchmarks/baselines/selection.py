"""Chooses a baseline's hyperparameters on validation, then measures the chosen one on test with the federation's own metric."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tessera.benchmarks.baselines.base import Baseline, validation_ndcg
from tessera.benchmarks.baselines.bm3 import Bm3
from tessera.benchmarks.baselines.ease import Ease
from tessera.benchmarks.baselines.group_popularity import GroupPopularity
from tessera.benchmarks.baselines.itemknn import ItemKNN
from tessera.benchmarks.baselines.lattice import Lattice
from tessera.benchmarks.baselines.lightgcn import LightGCN
from tessera.benchmarks.baselines.mgcn import Mgcn
from tessera.benchmarks.baselines.pgl import Pgl
from tessera.benchmarks.baselines.popularity import Popularity
from tessera.benchmarks.baselines.recent import RecentEase, RecentSpectral
from tessera.benchmarks.baselines.sequences import GRU4Rec, SASRec
from tessera.benchmarks.baselines.spectral import Spectral
from tessera.benchmarks.baselines.vbpr import Vbpr
from tessera.client.evaluation import evaluate
from tessera.client.histories import histories
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tessera.common.errors import RunError
from tessera.common.metrics.ranking import ranking_means

BASELINES: dict[str, type[Baseline]] = {
    "popularity": Popularity,
    "group-popularity": GroupPopularity,
    "itemknn": ItemKNN,
    "ease": Ease,
    "spectral": Spectral,
    "recent-ease": RecentEase,
    "recent-spectral": RecentSpectral,
    "vbpr": Vbpr,
    "bm3": Bm3,
    "mgcn": Mgcn,
    "pgl": Pgl,
    "lightgcn": LightGCN,
    "lattice": Lattice,
    "sasrec": SASRec,
    "gru4rec": GRU4Rec,
}


@dataclass
class Result:
    """One baseline's figures: what was tried, what validation chose, and what each seed then reached."""

    name: str
    chosen: dict[str, Any] = field(default_factory=dict)
    tried: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, float]] = field(default_factory=list)

    def mean(self, figure: str) -> float | None:
        """Mean over the seeds; None where there was nobody to measure it on."""
        values = [run[figure] for run in self.runs if figure in run]
        return float(np.mean(values)) if values else None

    def deviation(self, figure: str) -> float | None:
        """Sample standard deviation over the seeds; None with fewer than two."""
        values = [run[figure] for run in self.runs if figure in run]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare(
    name: str,
    split: Split,
    catalogue: Catalogue,
    seeds: Sequence[int],
    evaluation: EvaluationSettings,
    quick: bool,
    inspect: Callable[[Baseline, int], None] = lambda baseline, seed: None,
) -> Result:
    """Search the grid with the first seed by validation NDCG@50, then fit what it chose with every seed and measure.

    `inspect` sees each chosen baseline as a seed left it.
    """
    result, people = Result(name), histories(split)
    best, highest, seconds = None, -1.0, 0.0
    candidates = BASELINES[name].candidates(quick)
    for number, candidate in enumerate(candidates, start=1):
        baseline = replace(candidate)  # so that what was learnt by those not chosen is forgotten
        taken = _fit(baseline, split, catalogue, seeds[0])
        reached = validation_ndcg(baseline.scores(people), people, split)
        result.tried.append(baseline.chosen() | {"validation ndcg@50": rounded(reached), "seconds": rounded(taken)})
        print(
            f"{name} {number}/{len(candidates)} {baseline.chosen()} {100 * reached:.3f}, {taken:.1f} s", file=sys.stderr
        )
        if reached > highest:
            best, highest, seconds = baseline, reached, taken
    assert best is not None
    result.chosen = best.chosen()
    for seed in seeds if best.SEEDED else seeds[:1]:
        if seed != seeds[0]:
            seconds = _fit(best, split, catalogue, seed)
        run = {"seed": float(seed), "seconds": seconds} | best.remarks() | measure(best, split, evaluation)
        result.runs.append({name: rounded(value) for name, value in run.items()})
        inspect(best, seed)
    return result


def measure(baseline: Baseline, split: Split, evaluation: EvaluationSettings) -> dict[str, float]:
    """Validation and test figures of a fitted baseline by name, such as "test/warm/ndcg@50".

    Raises `RunError` where a score is not finite or nobody's scores tell items apart: such a ranking is no result. (A single
    user may tie everything: ItemKNN knows nothing of items that nobody else has.)
    """
    sums = evaluate(baseline.scores, split, evaluation, torch.from_numpy(split.counts()).float())
    if sums["nonfinite"] or sums["constant"] == sums["evaluated"]:
        raise RunError(f"evaluating {type(baseline).__name__}: its scores are constant or not finite")
    return {str(name): value for name, value in ranking_means(sums).items() if not name.counts}


def rounded(value: float) -> float:
    """Five significant digits."""
    return float(f"{value:.5g}")


def _fit(baseline: Baseline, split: Split, catalogue: Catalogue, seed: int) -> float:
    started = time.perf_counter()
    baseline.fit(split, catalogue, seed)
    return time.perf_counter() - started
