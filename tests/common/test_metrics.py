"""Metrics: fair to ties, and sums that add."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.metrics.names import written
from tessera.common.metrics.ranking import (
    MetricSums,
    hit_rate,
    ndcg,
    percentages,
    ranking_means,
    ranking_sums,
    standing,
)
from tests.support.splits import tries

KS = (1, 2, 3, 10)
exact_sums = st.builds(MetricSums, st.dictionaries(st.sampled_from("abcd"), st.integers(-1000, 1000).map(float)))


def plain(position: int, k: int) -> tuple[float, float]:
    """HR@k and NDCG@k of a single target at a position, from 0."""
    return (1.0, 1 / math.log2(position + 2)) if position < k else (0.0, 0.0)


def brute_force(scores: list[float], target: int, k: int) -> tuple[float, float]:
    """Average of the plain metrics over every order the items might lie in, sorted stably by score."""
    found = []
    for order in permutations(range(len(scores))):
        ranked = sorted(order, key=lambda item: -scores[item])
        found.append(plain(ranked.index(target), k))
    hits, gains = zip(*found, strict=True)
    return sum(hits) / len(found), sum(gains) / len(found)


def measured(scores: list[float], target: int, k: int) -> tuple[float, float]:
    table = torch.tensor([scores])
    above, ties = standing(table, torch.tensor([target]), torch.ones_like(table, dtype=torch.bool))
    return float(hit_rate(above, ties, k)), float(ndcg(above, ties, k))


@tries(60)
@given(st.lists(st.integers(0, 2).map(float), min_size=1, max_size=6), st.data())
def test_a_tie_is_worth_its_average_over_all_orders(scores: list[float], data: st.DataObject) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    for k in KS:
        assert measured(scores, target, k) == pytest.approx(brute_force(scores, target, k), abs=1e-6)


@pytest.mark.parametrize("k", [1, 10, 50, 100, 500])
def test_constant_scores_are_worth_a_random_order(k: int) -> None:
    hits, gains = zip(*(measured([0.25] * 100, target, k) for target in range(100)), strict=True)
    assert set(hits) == {hits[0]}, "the place in the catalogue must not matter"
    assert set(gains) == {gains[0]}
    assert hits[0] == pytest.approx(min(k / 100, 1))
    assert gains[0] == pytest.approx(sum(plain(position, k)[1] for position in range(100)) / 100)


def test_without_ties_the_metrics_are_the_plain_ones() -> None:
    scores = [0.1, 0.9, 0.5, 0.7]
    assert measured(scores, 1, 2) == (1, 1)
    assert measured(scores, 3, 2) == pytest.approx((1, 1 / math.log2(3)))
    assert measured(scores, 2, 2) == (0, 0)


@tries(60)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 10**6))
def test_standing_looks_only_at_candidates_and_the_target(n_users: int, n_items: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (n_users, n_items), generator=draw).float()
    targets = torch.randint(0, n_items, (n_users,), generator=draw)
    candidates = torch.rand(n_users, n_items, generator=draw) < 0.5
    before = candidates.clone()
    above, ties = standing(scores, targets, candidates)
    for user in range(n_users):
        target = int(targets[user])
        others = [i for i in range(n_items) if candidates[user, i] and i != target]
        own = scores[user, target]
        assert above[user] == sum(bool(scores[user, i] > own) for i in others)
        assert ties[user] == 1 + sum(bool(scores[user, i] == own) for i in others)
    assert torch.equal(candidates, before), "the caller's mask is not touched"


def test_masked_items_do_not_push_the_target_down() -> None:
    scores = torch.tensor([[9.0, 8.0, 1.0, 1.0, 0.0]])
    candidates = torch.tensor([[False, False, True, True, True]])
    above, ties = standing(scores, torch.tensor([2]), candidates)
    assert (int(above), int(ties)) == (0, 2)


def test_groups_share_their_users() -> None:
    above, ties = torch.tensor([0, 3, 1, 60]), torch.tensor([1, 2, 1, 1])
    warm = torch.tensor([True, False, True, False])
    groups = {"all": torch.ones(4, dtype=torch.bool), "warm": warm, "cold": ~warm}
    sums = ranking_sums("test", torch.arange(4), above, ties, groups, (2, 50))
    assert (sums["test/all/users"], sums["test/warm/users"], sums["test/cold/users"]) == (4, 2, 2)
    for metric in ("hr@2", "hr@50", "ndcg@2", "ndcg@50"):
        assert sums[f"test/warm/{metric}"] + sums[f"test/cold/{metric}"] == pytest.approx(sums[f"test/all/{metric}"])
    assert (sums["test/warm/hr@2"], sums["test/cold/hr@2"], sums["test/cold/hr@50"]) == (2, 0, 1)


def test_means_leave_empty_groups_out() -> None:
    nobody = torch.zeros(2, dtype=torch.bool)
    groups = {"all": ~nobody, "cold": nobody}
    sums = ranking_sums("test", torch.arange(2), torch.tensor([0, 1]), torch.tensor([1, 1]), groups, (1,))
    assert written(ranking_means(sums)) == {"test/all/users": 2, "test/all/hr@1": 0.5, "test/all/ndcg@1": 0.5}
    assert written(percentages(sums)) == {"test/all/users": 2, "test/all/hr@1": 50, "test/all/ndcg@1": 50}


@tries(60)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=8), st.data())
def test_devices_added_up_are_one_device(places: list[int], data: st.DataObject) -> None:
    """The mean over all users comes out the same however the users are spread over devices."""
    cut = data.draw(st.integers(0, len(places)))

    def sums(some: list[int]) -> MetricSums:
        above = torch.tensor(some, dtype=torch.int64)
        everybody = {"all": torch.ones(len(some), dtype=torch.bool)}
        owners = torch.arange(len(some))
        return ranking_sums("test", owners, above, torch.ones_like(above), everybody, (5, 20))

    apart = ranking_means(sums(places[:cut]) + sums(places[cut:]))
    assert apart == pytest.approx(ranking_means(sums(places)))


@tries(60)
@given(exact_sums, exact_sums, exact_sums)
def test_sums_add_in_any_order(a: MetricSums, b: MetricSums, c: MetricSums) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + MetricSums() == a == MetricSums() + a
    assert all((a + b)[name] == a[name] + b[name] for name in "abcd")


@tries(60)
@given(exact_sums, exact_sums)
def test_adding_leaves_the_parts_as_they_were(a: MetricSums, b: MetricSums) -> None:
    before = dict(a.values), dict(b.values)
    _ = a + b
    assert (dict(a.values), dict(b.values)) == before


def test_a_mean_needs_a_count() -> None:
    assert MetricSums({"loss": 6.0, "users": 4.0}).mean("loss", "users") == 1.5
    assert MetricSums({"loss": 6.0}).mean("loss", "users") is None
