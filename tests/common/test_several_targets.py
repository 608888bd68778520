"""Figures of several targets a person: those of trec_eval where nothing is tied, and means over all orders where some are."""

from itertools import pairwise, permutations

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import AP, RR, R, Success, nDCG

from tessera.client.evaluation import evaluate
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets
from tests.support.splits import settings, tries

METRICS = ("hr", "ndcg", "recall", "mrr", "map")
THEIRS = {"hr": Success, "ndcg": nDCG, "recall": R, "mrr": RR, "map": AP}


def split_with(targets: list[list[int]], n_items: int) -> Split:
    """People without training items; all that they had is for the test."""
    n_users = len(targets)
    owners = np.repeat(np.arange(n_users), [len(own) for own in targets])
    test = Targets.of_events(owners, np.array([item for own in targets for item in own], dtype=np.int64), n_users)
    nothing = np.zeros(0, dtype=np.int64)
    names = tuple(f"u{n}" for n in range(n_users))
    return Split(names, np.zeros(n_users + 1, dtype=np.int64), nothing, Targets.none(n_users), test, n_items)


def ours(scores: np.ndarray, targets: list[list[int]], ks: tuple[int, ...]) -> dict[str, float]:
    asked = settings(evaluation={"ks": ks, "metrics": METRICS}).evaluation
    split = split_with(targets, scores.shape[1])
    sums = evaluate(lambda users: torch.from_numpy(scores).float(), split, asked, None)
    assert sums["test/all/users"] == sum(map(bool, targets))
    return {
        name.removeprefix("test/all/"): value for name, value in sums.values.items() if name.startswith("test/all/")
    }


def theirs(scores: np.ndarray, targets: list[list[int]], ks: tuple[int, ...]) -> dict[str, float]:
    """Sums over people of what trec_eval says."""
    qrels = {str(user): {str(item): 1 for item in own} for user, own in enumerate(targets) if own}
    run = {user: {str(item): float(score) for item, score in enumerate(scores[int(user)])} for user in qrels}
    found = ir_measures.calc_aggregate([THEIRS[metric] @ k for metric in METRICS for k in ks], qrels, run)
    return {f"{metric}@{k}": found[THEIRS[metric] @ k] * len(qrels) for metric in METRICS for k in ks}


def test_figures_without_ties_are_those_of_an_independent_package() -> None:
    rng = np.random.default_rng(0)
    targets = [rng.choice(80, size=size, replace=False).tolist() for size in (1, 2, 5, 0, 30, 12, 1, 60)]
    scores = rng.permuted(np.tile(np.arange(80.0), (len(targets), 1)), axis=1)
    found, expected = ours(scores, targets, (1, 5, 20, 70)), theirs(scores, targets, (1, 5, 20, 70))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def naive(ranking: tuple[int, ...], own: list[int], k: int) -> dict[str, float]:
    hits = [item in own for item in ranking[:k]]
    places = [place for place, hit in enumerate(hits) if hit]
    ideal = sum(1 / np.log2(place + 2) for place in range(min(k, len(own))))
    return {
        "hr": float(any(hits)),
        "ndcg": sum(1 / np.log2(place + 2) for place in places) / ideal,
        "recall": sum(hits) / len(own),
        "mrr": 1 / (places[0] + 1) if places else 0.0,
        "map": sum((n + 1) / (place + 1) for n, place in enumerate(places)) / len(own),
    }


@tries(40)
@given(
    st.lists(st.integers(0, 2), min_size=2, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6).filter(any),
    st.integers(1, 7),
)
def test_tied_targets_count_by_their_mean_over_all_orders(levels: list[int], wanted: list[bool], k: int) -> None:
    own = [item for item in range(len(levels)) if wanted[item]]
    if not own:
        return
    better = [[a >= b for b in levels] for a in levels]
    every_order = permutations(range(len(levels)))
    orders = [order for order in every_order if all(better[a][b] for a, b in pairwise(order))]
    every = [naive(order, own, k) for order in orders]
    found = ours(np.array([levels], dtype=np.float64), [own], (k,))
    for metric in METRICS:
        assert found[f"{metric}@{k}"] == pytest.approx(np.mean([one[metric] for one in every]), abs=1e-7), metric
