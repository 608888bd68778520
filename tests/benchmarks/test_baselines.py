"""Centralised baselines: each finds planted structure, none sees what it is tested on, the closed forms are what they say."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.benchmarks.baselines import __main__ as command
from tessera.benchmarks.baselines.base import Baseline, interaction_matrix, validation_ndcg
from tessera.benchmarks.baselines.ease import Ease
from tessera.benchmarks.baselines.graphs import (
    bipartite_graph,
    histories_graph,
    item_graph,
    light_gcn,
    user_item_graph,
    weighted_sum,
)
from tessera.benchmarks.baselines.group_popularity import GroupPopularity, nearest
from tessera.benchmarks.baselines.itemknn import ItemKNN
from tessera.benchmarks.baselines.popularity import Popularity
from tessera.benchmarks.baselines.selection import BASELINES, compare, measure
from tessera.benchmarks.baselines.spectral import Spectral
from tessera.benchmarks.baselines.training import TrainedBaseline
from tessera.benchmarks.baselines.vbpr import Vbpr
from tessera.client.histories import Histories, histories
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError, RunError
from tests.support.grouped import N_GROUPS, N_ITEMS, N_USERS
from tests.support.splits import ragged, shuffled, split_of

AT_10 = EvaluationSettings(ks=(10,))
RANDOM = 10 / (N_ITEMS - 9)


def small(name: str, epochs: int = 25) -> Baseline:
    kind = BASELINES[name]
    return kind(learning_rate=0.01, dim=16, batch=128, epochs=epochs) if issubclass(kind, TrainedBaseline) else kind()


def fitted(name: str, split: Split, catalogue: Catalogue, seed: int = 0, epochs: int = 25) -> torch.Tensor:
    baseline = small(name, epochs)
    baseline.fit(split, catalogue, seed)
    return baseline.scores(histories(split))


@pytest.mark.parametrize("name", BASELINES)
def test_a_peer_beats_random_on_planted_structure(name: str, split: Split, catalogue: Catalogue) -> None:
    baseline = small(name)
    baseline.fit(split, catalogue, seed=0)
    reached = measure(baseline, split, AT_10)["test/all/hr@10"]
    assert reached > (1.2 if name == "popularity" else 3.0) * RANDOM


@pytest.mark.parametrize("name", BASELINES)
def test_test_items_change_no_score(name: str, split: Split, catalogue: Catalogue) -> None:
    other = replace(split, test=shuffled(split.test))
    assert torch.equal(fitted(name, split, catalogue, epochs=3), fitted(name, other, catalogue, epochs=3))


@pytest.mark.parametrize("name", BASELINES)
def test_validation_items_change_at_most_the_epoch(name: str, split: Split, catalogue: Catalogue) -> None:
    other = replace(split, validation=shuffled(split.validation))
    assert torch.equal(fitted(name, split, catalogue, epochs=1), fitted(name, other, catalogue, epochs=1))


@pytest.mark.parametrize("name", [name for name, kind in BASELINES.items() if kind.SEEDED])
def test_the_seed_decides_everything(name: str, split: Split, catalogue: Catalogue) -> None:
    torch.manual_seed(1)
    first = fitted(name, split, catalogue, seed=3, epochs=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(first, fitted(name, split, catalogue, seed=3, epochs=3))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, fitted(name, split, catalogue, seed=4, epochs=3))


def test_the_best_epoch_is_kept_and_training_stops(split: Split, catalogue: Catalogue) -> None:
    baseline = Vbpr(learning_rate=0.05, dim=16, batch=128, epochs=200, patience=3)
    baseline.fit(split, catalogue, seed=0)
    best, people = validation_ndcg(baseline.scores(histories(split)), histories(split), split), histories(split)
    assert baseline.best_epoch < 100
    for epochs in range(1, baseline.best_epoch + 4):
        shorter = replace(baseline, epochs=epochs)
        shorter.fit(split, catalogue, seed=0)
        assert validation_ndcg(shorter.scores(people), people, split) <= best


def test_ease_is_a_regression_of_each_item_on_the_others() -> None:
    split = split_of(ragged(0, [3, 5, 4, 6, 2, 7], 9), 9)
    interactions = interaction_matrix(histories(split), torch.float64)
    expected = torch.zeros(6, 9, dtype=torch.float64)
    for item in range(9):
        others = [other for other in range(9) if other != item]
        inputs = interactions[:, others]
        gram = inputs.T @ inputs + 2.5 * torch.eye(8, dtype=torch.float64)
        expected[:, item] = inputs @ torch.linalg.solve(gram, inputs.T @ interactions[:, item])
    baseline = Ease(penalty=2.5)
    baseline.fit(split, None, 0)  # type: ignore[arg-type]
    torch.testing.assert_close(baseline.scores(histories(split)), expected)


def test_itemknn_by_hand() -> None:
    people = [[0, 1], [0, 1, 2], [0, 3]]
    baseline = ItemKNN(neighbours=1, shrinkage=1.0)
    baseline.fit(split_of(people, 4), None, 0)  # type: ignore[arg-type]
    nearest = {0: (1, 2 / (6**0.5 + 1)), 1: (0, 2 / (6**0.5 + 1)), 2: (1, 1 / (2**0.5 + 1)), 3: (0, 1 / (3**0.5 + 1))}
    expected = [[weight * (other in items) for other, weight in nearest.values()] for items in people]
    torch.testing.assert_close(baseline.scores(histories(split_of(people, 4))), torch.tensor(expected))


def test_spectral_with_power_two_and_all_directions_is_the_gram_matrix() -> None:
    split = split_of(ragged(0, [3, 5, 4, 6, 2, 7], 9), 9)
    interactions = interaction_matrix(histories(split), torch.float64)
    scaled = interactions * interactions.sum(1, keepdim=True) ** -0.25
    expected = interactions @ scaled.T @ scaled / torch.linalg.matrix_norm(scaled, 2) ** 2
    baseline = Spectral(rank=100, power=2.0)
    baseline.fit(split, None, 0)  # type: ignore[arg-type]
    torch.testing.assert_close(baseline.scores(histories(split)), expected)


@pytest.mark.parametrize("kind", [Popularity, GroupPopularity, ItemKNN, Ease, Spectral])
def test_items_nobody_has_tie(kind: type[Baseline]) -> None:
    split = split_of(ragged(2, [6] * 12, 20), 25)
    baseline = kind()
    baseline.fit(split, None, 0)  # type: ignore[arg-type]
    assert (baseline.scores(histories(split))[:, 20:] == 0).all()


def test_popularity_within_groups_counts_in_each_and_in_one_group_is_popularity(
    split: Split, catalogue: Catalogue
) -> None:
    people, one, planted = histories(split), GroupPopularity(groups=1), GroupPopularity(groups=8)
    for baseline in (one, planted):
        baseline.fit(split, catalogue, 0)
    counts = torch.from_numpy(split.counts())
    assert torch.equal(one.scores(people).argsort(dim=1, stable=True), counts.argsort(stable=True).expand(N_USERS, -1))
    groups = nearest(planted._tastes(people), planted._centroids)
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        assert len((members % N_GROUPS).unique()) == 1, "people of a kind are together"
        wanted = sum((people.counts()[member] for member in members), torch.zeros(N_ITEMS))
        assert torch.equal(planted.scores(people)[members[0]].floor(), wanted)


def test_what_becomes_known_later_is_used_by_the_closed_forms_and_refused_for_strangers(
    split: Split, catalogue: Catalogue
) -> None:
    told = histories(split, split.validation)
    ease, vbpr = small("ease"), small("vbpr", epochs=1)
    for baseline in (ease, vbpr):
        baseline.fit(split, catalogue, 0)
    assert not torch.equal(ease.scores(told), ease.scores(histories(split)))
    assert torch.equal(vbpr.scores(told), vbpr.scores(histories(split)))
    with pytest.raises(DataError, match="exactly the users"):
        vbpr.scores(histories(split.take(np.arange(3))))


def people_of(seed: int = 0) -> Histories:
    return histories(split_of(ragged(seed, [2, 4, 3, 5], 7), 7))


def test_the_normalised_adjacency() -> None:
    people = people_of()
    dense = torch.zeros(4, 7)
    dense[people.owners, people.items] = 1
    expected = dense / (dense.sum(1, keepdim=True) * dense.sum(0).clamp(min=1)).sqrt()
    block = user_item_graph(people.owners, people.items, 4, 7)
    torch.testing.assert_close(block @ torch.eye(7), expected)
    whole = bipartite_graph(people.owners, people.items, 4, 7)
    degrees = torch.cat([dense.sum(1), dense.sum(0)])
    torch.testing.assert_close(whole @ degrees.sqrt()[:, None], degrees.sqrt()[:, None])  # eigenvalue 1
    torch.testing.assert_close((whole @ torch.eye(11))[:4, 4:], expected)


def test_a_graph_has_the_gradient_of_its_dense_matrix() -> None:
    people = people_of()
    graph = user_item_graph(people.owners, people.items, 4, 7)
    table = torch.randn(7, 3, requires_grad=True)
    upstream = torch.randn(4, 3)
    (graph @ table).backward(upstream)
    torch.testing.assert_close(table.grad, (graph @ torch.eye(7)).T @ upstream)
    hops = light_gcn(histories_graph(people), torch.eye(11), 2)
    dense = histories_graph(people) @ torch.eye(11)
    torch.testing.assert_close(hops, (torch.eye(11) + dense + dense @ dense) / 3)


def test_the_item_graph_links_each_item_with_its_nearest() -> None:
    values = np.random.default_rng(0).normal(size=(12, 5)).astype("f4")
    present = np.arange(12) != 4
    features = Features(values, present, "random")
    dense = item_graph(features, 3, weighted=False) @ torch.eye(12)
    table = torch.nn.functional.normalize(torch.from_numpy(features.standardised()), dim=1)
    for item in np.flatnonzero(present):
        cosines = torch.where(torch.from_numpy(present), table @ table[item], -2)
        assert set(dense[item].nonzero().flatten().tolist()) == set(cosines.topk(3).indices.tolist())
    torch.testing.assert_close(dense.sum(1), torch.from_numpy(present).float())
    assert (dense[:, 4] == 0).all()
    weighted = item_graph(features, 3, weighted=True) @ torch.eye(12)
    assert (weighted.diagonal()[present] > 0).all()
    assert not torch.equal(weighted > 0, weighted == dense)


def test_graphs_add() -> None:
    graphs = [histories_graph(people_of(seed)) for seed in (0, 1)]
    first, second = (graph @ torch.eye(11) for graph in graphs)
    torch.testing.assert_close(weighted_sum(graphs, [0.25, 2.0]) @ torch.eye(11), 0.25 * first + 2 * second)


def test_a_split_without_validation_is_refused(catalogue: Catalogue) -> None:
    nobody = split_of(ragged(0, [5, 6], N_ITEMS), N_ITEMS)
    with pytest.raises(DataError, match="nobody has a validation item"):
        small("vbpr").fit(nobody, catalogue, 0)


class Useless(Popularity):
    def scores(self, known: Histories) -> torch.Tensor:
        return super().scores(known) * self.factor


@pytest.mark.parametrize("factor", [0.0, torch.nan])
def test_scores_that_say_nothing_are_no_result(factor: float, split: Split, catalogue: Catalogue) -> None:
    baseline = Useless()
    baseline.factor = factor
    baseline.fit(split, catalogue, 0)
    with pytest.raises(RunError, match="evaluating Useless"):
        measure(baseline, split, AT_10)


def test_validation_alone_chooses(split: Split, catalogue: Catalogue) -> None:
    result = compare("ease", split, catalogue, [0, 1], AT_10, quick=False)
    assert len(result.tried) == len(Ease.GRID["penalty"])
    best = max(result.tried, key=lambda trial: trial["validation ndcg@50"])
    assert result.chosen == {"penalty": best["penalty"]}
    assert len(result.runs) == 1  # no seed in it, nothing to repeat
    other = compare("ease", replace(split, test=shuffled(split.test)), catalogue, [0], AT_10, quick=False)
    assert other.chosen == result.chosen
    assert other.runs[0]["test/all/hr@10"] != result.runs[0]["test/all/hr@10"]


REAL = pytest.mark.skipif(not os.environ.get("TESSERA_DATA"), reason="needs the folder named by TESSERA_DATA")


@REAL
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("baseline", "hit_rate", "ndcg"),
    [(Popularity(), 0.11284, 0.03510), (Ease(300.0), 0.28033, 0.07795), (Spectral(128, 0.5), 0.26885, 0.07672)],
    ids=["popularity", "ease", "spectral"],
)
def test_the_closed_forms_reach_what_they_should(
    baseline: Baseline, hit_rate: float, ndcg: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["baselines", "--dataset", "ml-latest-small"])
    split, catalogue = command.load(command.parse())
    baseline.fit(split, catalogue, 0)
    figures = measure(baseline, split, EvaluationSettings(ks=(50,)))
    assert figures["test/all/hr@50"] == pytest.approx(hit_rate, abs=1e-5)
    assert figures["test/all/ndcg@50"] == pytest.approx(ndcg, abs=1e-5)


@REAL
@pytest.mark.real_data
def test_the_command_ends_with_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--dataset", "ku", "--baselines", "popularity,spectral,vbpr", "--quick"]
    monkeypatch.setattr(sys, "argv", ["baselines", *arguments])
    threads = torch.get_num_threads()
    command.main()
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    figures = json.loads(lines[-1])["baselines"]
    assert list(figures) == ["popularity", "spectral", "vbpr"]
    assert lines[2].split()[0] == "popularity"
    assert figures["spectral"]["runs"][0]["test/cold/hr@50"] < 0.2
