"""Evaluation on the device against a loop that ranks for one user at a time."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.evaluation import baselines, drawn_candidates, evaluate
from tessera.client.histories import Histories
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.interactions import Split
from tessera.common.errors import ConfigError
from tessera.common.metrics.names import written
from tessera.common.metrics.ranking import MetricSums, ranking_means
from tessera.common.protocol.messages import CONTENT, COUNTS
from tests.support.splits import ragged, settings, split_of, tries

N_ITEMS, KS = 25, (1, 5, 10)


def evaluation(**changes: object) -> EvaluationSettings:
    return settings(evaluation={"ks": KS} | changes).evaluation


def random_split(seed: int, lengths: Sequence[int]) -> Split:
    """Users whose items are all different; those with fewer than three are not evaluated."""
    rows = ragged(seed, lengths, N_ITEMS)
    held = [(row[-2], row[-1], row[:-2]) if len(row) >= 3 else (-1, -1, row) for row in rows]
    validation, test, train = zip(*held, strict=True)
    return split_of(train, N_ITEMS, validation, test)


def rank(scores: np.ndarray, target: int, banned: set[int], k: int) -> tuple[float, float]:
    """Expected HR@k and NDCG@k of one target: every place within its tie has the same chance."""
    others = [item for item in range(len(scores)) if item not in banned and item != target]
    above = sum(scores[item] > scores[target] for item in others)
    ties = 1 + sum(scores[item] == scores[target] for item in others)
    places = range(above, above + ties)
    return (
        sum(place < k for place in places) / ties,
        sum(1 / math.log2(place + 2) for place in places if place < k) / ties,
    )


def naive(scores: np.ndarray, split: Split, counts: np.ndarray) -> dict[str, float]:
    """Sums over users of both parts, all, warm and cold."""
    sums: dict[str, float] = {}
    for user in range(len(split.users)):
        train = set(split.train_items[split.offsets[user] : split.offsets[user + 1]].tolist())
        told = {int(split.validation.first()[user])}
        parts = (("validation", split.validation.first(), train), ("test", split.test.first(), train | told))
        for part, targets, banned in parts:
            target = int(targets[user])
            if target < 0:
                continue
            for group in ("all", "warm" if counts[target] > 0 else "cold"):
                found = {f"{part}/{group}/users": 1.0}
                for k in KS:
                    hit, gain = rank(scores[user], target, banned, k)
                    found |= {f"{part}/{group}/hr@{k}": hit, f"{part}/{group}/ndcg@{k}": gain}
                sums = {name: sums.get(name, 0.0) + found.get(name, 0.0) for name in sums | found}
    return sums


def assert_sums(found: MetricSums, expected: dict[str, float]) -> None:
    ranked = {name: value for name, value in found.values.items() if "/" in name and value}
    assert ranked == pytest.approx({name: value for name, value in expected.items() if value}, abs=1e-5)


def table_of(scores: torch.Tensor):  # type: ignore[no-untyped-def]
    """A scorer that gives fixed scores to users called u0, u1, ..."""
    return lambda users: scores


@tries(40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 999), st.sampled_from([2, 5, 10**6]))
def test_sums_are_those_of_one_user_at_a_time(lengths: list[int], seed: int, levels: int) -> None:
    """With few levels of scores most targets are tied; items in nobody's training are cold."""
    split = random_split(seed, lengths)
    scores = torch.randint(0, levels, (len(lengths), N_ITEMS), generator=torch.Generator().manual_seed(seed)).float()
    counts = torch.from_numpy(split.counts()).float()
    found = evaluate(table_of(scores), split, evaluation(), counts)
    assert_sums(found, naive(scores.numpy(), split, split.counts()))
    assert found["evaluated"] == len(lengths)


def only_user(**held: list[int]) -> Split:
    return split_of([[0, 1]], 6, held.get("validation", [2]), held.get("test", [3]))


def test_training_items_and_at_test_the_validation_item_are_no_candidates() -> None:
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 5.0, 4.0]])
    sums = evaluate(table_of(scores), only_user(), evaluation(ks=(1,)), torch.ones(6))
    assert (sums["validation/all/hr@1"], sums["test/all/hr@1"]) == (1, 1)


def test_the_test_item_is_a_candidate_at_validation() -> None:
    """The test item is not known then: banning it would make validation easier by what is to be predicted."""
    scores = torch.tensor([[0.0, 0.0, 7.0, 8.0, 5.0, 4.0]])
    sums = evaluate(table_of(scores), only_user(), evaluation(ks=(1, 2)), torch.ones(6))
    assert (sums["validation/all/hr@1"], sums["validation/all/hr@2"]) == (0, 1)


def test_targets_are_warm_or_cold_by_the_federations_counts() -> None:
    """Not by what this device's own people have."""
    counts = torch.tensor([1.0, 1.0, 3.0, 0.0, 0.0, 0.0])
    sums = evaluate(table_of(torch.arange(6.0)[None]), only_user(), evaluation(), counts)
    assert (sums["validation/warm/users"], sums["validation/cold/users"]) == (1, 0)
    assert (sums["test/warm/users"], sums["test/cold/users"]) == (0, 1)


@pytest.mark.parametrize(("told", "expected"), [("train", [[0, 1]]), ("train+validation", [[0, 1], [0, 1, 2]])])
def test_what_the_model_is_told_of_the_history(told: str, expected: list[list[int]]) -> None:
    asked: list[list[int]] = []

    def scorer(users: Histories) -> torch.Tensor:
        asked.append(users.items.tolist())
        return torch.arange(6.0)[None] * len(users.items)

    sums = evaluate(scorer, only_user(), evaluation(history_at_test=told), torch.ones(6))
    assert asked == expected
    assert sums["test/all/users"] == 1


def test_constant_and_non_finite_scores_are_counted() -> None:
    split = random_split(0, [5, 5, 5, 5, 5])
    scores = torch.rand(5, N_ITEMS, generator=torch.Generator().manual_seed(0))
    scores[1] = 0.5
    scores[2, 7] = torch.nan
    scores[3] = torch.inf
    sums = evaluate(table_of(scores), split, evaluation(), torch.ones(N_ITEMS))
    assert (sums["evaluated"], sums["constant"], sums["nonfinite"]) == (5, 1, 2)


def test_scores_that_differ_only_on_what_the_user_has_are_constant() -> None:
    """Whatever the model says of training items, it ranks nothing."""
    scores = torch.tensor([[9.0, 3.0, 1.0, 1.0, 1.0, 1.0]])
    sums = evaluate(table_of(scores), only_user(), evaluation(), torch.ones(6))
    assert (sums["constant"], sums["nonfinite"]) == (1, 0)
    assert evaluate(table_of(scores + torch.eye(6)[4]), only_user(), evaluation(), torch.ones(6))["constant"] == 0


def test_a_person_without_a_history_is_no_fault_of_the_model() -> None:
    """Who has only held-out items (a given split) gets the same score for all, worth a random order; others rank."""
    split = split_of([[0, 1], []], 6, [2, 2], [3, 3])
    scores = torch.stack([torch.arange(6.0), torch.zeros(6)])
    sums = evaluate(table_of(scores), split, evaluation(ks=(1,)), torch.ones(6))
    assert sums["validation/all/hr@1"] == pytest.approx(1 / 6)
    assert sums["constant"] == 0


def test_nobody_to_evaluate_gives_no_users() -> None:
    split = split_of([[0], [1, 2]], 6)
    sums = evaluate(table_of(torch.rand(2, 6)), split, evaluation(), torch.ones(6))
    assert ranking_means(sums) == {}


def baseline_means(split: Split, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    return written(ranking_means(baselines(split, evaluation(), inputs)))


def test_random_is_k_over_candidates_exactly() -> None:
    lengths = [3, 4, 9, 14, 21]
    split = random_split(1, lengths)
    found = baseline_means(split, {COUNTS: torch.from_numpy(split.counts()).float()})
    for part, given_ in (("validation", 2), ("test", 1)):
        candidates = [N_ITEMS - (length - given_) for length in lengths]
        for k in KS:
            expected = np.mean([min(k / n, 1) for n in candidates])
            assert found[f"random/{part}/all/hr@{k}"] == pytest.approx(expected, rel=1e-6)
            gains = [sum(1 / math.log2(place + 2) for place in range(min(k, n))) / n for n in candidates]
            assert found[f"random/{part}/all/ndcg@{k}"] == pytest.approx(np.mean(gains), rel=1e-6)


def test_fixed_rankings_are_those_of_numpy() -> None:
    split = random_split(2, [6, 6, 9, 12, 5, 7, 3])
    counts = split.counts()
    found = baselines(split, evaluation(), {COUNTS: torch.from_numpy(counts).float()})
    rankings = {"popularity": counts, "inverse-popularity": -counts, "item-id": -np.arange(N_ITEMS)}
    rankings["item-id-descending"] = np.arange(N_ITEMS)
    for name, ranking in rankings.items():
        expected = naive(np.tile(ranking, (7, 1)), split, counts)
        own = {key.removeprefix(f"{name}/"): value for key, value in found.values.items() if key.startswith(f"{name}/")}
        assert_sums(MetricSums(own), expected)


def test_content_is_the_cosine_with_what_the_user_has() -> None:
    split = random_split(3, [6, 9, 4, 12])
    rng = np.random.default_rng(3)
    tables = {}
    for name in ("image", "text"):
        table = rng.standard_normal((N_ITEMS, 6)).astype(np.float32)
        tables[name] = table / np.linalg.norm(table, axis=1, keepdims=True)
    counts = split.counts()
    inputs = {COUNTS: torch.from_numpy(counts).float()}
    inputs |= {CONTENT + name: torch.from_numpy(table) for name, table in tables.items()}
    found = baselines(split, evaluation(), inputs)
    for name, table in (*tables.items(), ("all", np.hstack(list(tables.values())))):
        profiles = [split.train_items[split.offsets[u] : split.offsets[u + 1]] for u in range(4)]
        scores = np.stack([table[items].mean(0) @ table.T for items in profiles])
        prefix = f"content-{name}/"
        own = {key.removeprefix(prefix): value for key, value in found.values.items() if key.startswith(prefix)}
        assert_sums(MetricSums(own), naive(scores, split, counts))


def test_baselines_do_not_stop_a_run() -> None:
    """Random scores are constant by design; only the model's are counted as a fault."""
    split = random_split(1, [5, 5])
    found = baselines(split, evaluation(), {COUNTS: torch.from_numpy(split.counts()).float()})
    assert [name for name in found.values if "/" not in name] == ["evaluated"]
    assert found["constant"] == found["nonfinite"] == 0


def test_lists_that_hold_all_drawn_items_are_refused() -> None:
    with pytest.raises(ConfigError, match="sampled_candidates 4: of ks, 10 holds them all"):
        evaluation(sampled_candidates=4)


@tries(20)
@given(st.lists(st.integers(3, 9), min_size=1, max_size=5), st.integers(0, 99), st.sampled_from([3, 10**6]))
def test_targets_are_ranked_among_drawn_items_too(lengths: list[int], seed: int, levels: int) -> None:
    """By person, whoever is ranked beside them: the drawn items are candidates, none is asked for, ties count as ever."""
    split = random_split(seed, lengths)
    scores = torch.randint(0, levels, (len(lengths), N_ITEMS), generator=torch.Generator().manual_seed(seed)).float()
    found = evaluate(table_of(scores), split, evaluation(ks=(1, 5), sampled_candidates=6), None)
    apart = MetricSums()
    for row in range(len(split.users)):
        alone = split.take(np.array([row]))
        apart += evaluate(table_of(scores[row : row + 1]), alone, evaluation(ks=(1, 5), sampled_candidates=6), None)
    assert found.values == pytest.approx(dict(apart.values))
    candidates = torch.ones(len(lengths), N_ITEMS, dtype=torch.bool)
    candidates[:, 0] = False
    drawn = drawn_candidates("test", candidates, split.test, split.users, 6)
    hits = 0.0
    for row, target in enumerate(split.test.first().tolist()):
        assert drawn[row].sum() == 6
        assert not drawn[row, [0, target]].any()
        held = {*split.train_items[split.offsets[row] : split.offsets[row + 1]], int(split.validation.first()[row])}
        open_ = torch.ones(1, N_ITEMS, dtype=torch.bool)
        open_[:, [int(item) for item in held]] = False
        among = drawn_candidates("test", open_, split.take(np.array([row])).test, split.users[row : row + 1], 6)[0]
        hits += rank(scores[row].numpy(), target, set((~among).nonzero()[:, 0].tolist()), 5)[0]
    assert found["test/sampled/hr@5"] == pytest.approx(hits)
    assert found["test/sampled/users"] == len(lengths)
