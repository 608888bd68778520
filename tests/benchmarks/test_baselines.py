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
from tessera.benchmarks.baselines.bm3 import Bm3, Bm3Model
from tessera.benchmarks.baselines.ease import Ease
from tessera.benchmarks.baselines.graphs import (
    bipartite_graph,
    histories_graph,
    item_graph,
    light_gcn,
    user_item_graph,
    weighted_sum,
)
from tessera.benchmarks.baselines.itemknn import ItemKNN
from tessera.benchmarks.baselines.lattice import Lattice, LatticeModel
from tessera.benchmarks.baselines.lightgcn import LightGCN, LightGCNModel
from tessera.benchmarks.baselines.mgcn import Mgcn, MgcnModel
from tessera.benchmarks.baselines.pgl import Pgl, PglModel, modality_weights
from tessera.benchmarks.baselines.popularity import Popularity
from tessera.benchmarks.baselines.selection import BASELINES, compare, measure
from tessera.benchmarks.baselines.sequences import GRU4Rec, SASRec, SequenceBaseline, SequenceModel
from tessera.benchmarks.baselines.spectral import Spectral
from tessera.benchmarks.baselines.training import TrainedBaseline, info_nce
from tessera.benchmarks.baselines.vbpr import Vbpr, VbprModel
from tessera.client.histories import Histories, histories, single
from tessera.common.config.settings import EvaluationSettings
from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError, RunError
from tests.support.splits import ragged, shuffled, split_of

N_GROUPS, N_USERS, N_ITEMS, AT_10 = 4, 80, 120, EvaluationSettings(ks=(10,))
RANDOM = 10 / (N_ITEMS - 9)


@pytest.fixture(scope="module")
def split() -> Split:
    """Users of four groups who take mostly the more popular items of their own group's thirty; 8 train, 1 + 1 held out."""
    rng = np.random.default_rng(0)
    chances = np.arange(N_ITEMS // N_GROUPS, 0, -1) ** 1.5
    own = rng.permuted(np.arange(N_ITEMS)).reshape(N_GROUPS, -1)
    taken = [rng.choice(own[user % N_GROUPS], 10, replace=False, p=chances / chances.sum()) for user in range(N_USERS)]
    taken = [rng.permuted(items) for items in taken]
    return split_of(
        [items[:8] for items in taken], N_ITEMS, [items[8] for items in taken], [items[9] for items in taken]
    )


@pytest.fixture(scope="module")
def catalogue(split: Split) -> Catalogue:
    """Features of two widths that hint at the group; some items have no picture."""
    rng = np.random.default_rng(1)
    groups = np.zeros((N_ITEMS, N_GROUPS))
    np.add.at(groups, (split.train_items, np.repeat(np.arange(N_USERS), 8) % N_GROUPS), 1)
    hints = groups / np.maximum(groups.sum(1, keepdims=True), 1)
    present = rng.random(N_ITEMS) < 0.9
    features = {
        name: Features(
            (hints @ rng.normal(size=(N_GROUPS, width)) + rng.normal(size=(N_ITEMS, width))).astype("f4"), mask, name
        )
        for name, width, mask in (("image", 12, present), ("text", 7, np.ones(N_ITEMS, dtype=bool)))
    }
    names = tuple(f"i{n}" for n in range(N_ITEMS))
    return Catalogue(names, names, ("",) * N_ITEMS, ("",) * N_ITEMS, features)


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


@pytest.mark.parametrize("kind", [Popularity, ItemKNN, Ease, Spectral])
def test_items_nobody_has_tie(kind: type[Baseline]) -> None:
    split = split_of(ragged(2, [6] * 12, 20), 25)
    baseline = kind()
    baseline.fit(split, None, 0)  # type: ignore[arg-type]
    assert (baseline.scores(histories(split))[:, 20:] == 0).all()


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


def test_vbpr_scores_as_its_equation(split: Split, catalogue: Catalogue) -> None:
    model = Vbpr(dim=3).build(histories(split), catalogue)
    assert isinstance(model, VbprModel)
    torch.nn.init.normal_(model.bias)
    torch.nn.init.normal_(model.content_bias)
    users, items = model()
    gamma, theta = model.users[5].split(3)
    content = model.features[9]
    expected = (
        model.bias[9] + gamma @ model.items[9] + theta @ (model.projection.T @ content) + model.content_bias @ content
    )
    torch.testing.assert_close(users[5] @ items[9], expected)


def test_bm3_loss_as_its_equation(split: Split, catalogue: Catalogue) -> None:
    model = Bm3(dim=3, dropout=0.0, layers=1, penalty=0.5).build(histories(split), catalogue)
    assert isinstance(model, Bm3Model)
    users, positives = torch.tensor([4, 9]), torch.tensor([7, 2])
    all_users, all_items = model.embed()
    expected = []
    for user, item in zip(all_users[users], all_items[positives], strict=True):
        pairs = [(user, item), (item, user)]
        number = positives[len(expected)]
        for projection, features in zip(model.projections, model.features, strict=True):
            modality = projection(features[number])
            pairs += [(modality, item), (modality, modality)]
        distances = [1 - torch.cosine_similarity(model.predictor(online), target, dim=0) for online, target in pairs]
        expected.append(sum(distances) + 0.5 * (user @ user + item @ item) / 2)
    torch.testing.assert_close(model.loss(users, positives, positives), (expected[0] + expected[1]) / 2)


def test_mgcn_embeds_each_node_as_its_equations(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = Mgcn(dim=3, layers=1).build(people, catalogue)
    assert isinstance(model, MgcnModel)
    own = torch.cat([model.users, model.items])
    behaviour = (own + model.interactions @ own) / 2
    purified = [
        model.items * torch.sigmoid(gate(projection(features)))
        for gate, projection, features in zip(model.purifiers, model.projections, model.features, strict=True)
    ]
    of_items = [graph @ items for graph, items in zip(model.graphs, purified, strict=True)]
    views = [torch.cat([model.user_item @ items, items]) for items in of_items]
    users, items = model()
    for node in (3, N_USERS + 5):
        here = [view[node] for view in views]
        attention = torch.softmax(torch.cat([model.attention(view) for view in here]), 0)
        shared = attention[0] * here[0] + attention[1] * here[1]
        gates = [torch.sigmoid(preference(behaviour[node])) for preference in model.preferences]
        private = [gate * (view - shared) for gate, view in zip(gates, here, strict=True)]
        expected = behaviour[node] + shared + (private[0] + private[1]) / 2
        torch.testing.assert_close(torch.cat([users, items])[node], expected)


def test_infonce_is_the_mean_of_minus_log_shares() -> None:
    first, second = torch.randn(5, 3), torch.randn(5, 3)
    shares = (torch.cosine_similarity(first[:, None], second[None], dim=2) / 0.2).exp()
    torch.testing.assert_close(info_nce(first, second, 0.2), -(shares.diagonal() / shares.sum(1)).log().mean())


def test_pgl_trains_on_a_part_of_the_edges_and_infers_on_all(split: Split, catalogue: Catalogue) -> None:
    model = Pgl(dim=4, kept=0.3).build(histories(split), catalogue)
    assert isinstance(model, PglModel)
    model.begin_epoch()
    first = model.principal.forward.values()
    assert len(first) == 2 * int(0.3 * len(split.train_items))
    inferred = model.eval()()
    model.begin_epoch()
    assert torch.equal(inferred[0], model()[0])
    assert not torch.equal(inferred[0], model.train()()[0])


def test_pgl_embeds_each_item_as_its_equations(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = Pgl(dim=3, layers=1, image_weight=0.25, neighbours=4).build(people, catalogue)
    assert isinstance(model, PglModel)
    graphs = {
        name: item_graph(values, 4, weighted=False) @ torch.eye(N_ITEMS) for name, values in catalogue.features.items()
    }
    parts = {name: model.projections[name](values) for name, values in model.features.items()}
    raw = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts.values()], dim=1)
    hop = histories_graph(people) @ torch.cat([model.users, raw])
    latent = (0.25 * graphs["image"] + 0.75 * graphs["text"]) @ raw
    users, items = model.eval()()
    torch.testing.assert_close(items, (raw + hop[N_USERS:]) / 2 + latent)
    torch.testing.assert_close(users, (model.users + hop[:N_USERS]) / 2)


def test_lightgcn_is_the_mean_over_hops(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = LightGCN(dim=3, layers=2).build(people, catalogue)
    assert isinstance(model, LightGCNModel)
    hop, own = histories_graph(people) @ torch.eye(N_USERS + N_ITEMS), torch.cat([model.users, model.items])
    torch.testing.assert_close(torch.cat(model()), (own + hop @ own + hop @ hop @ own) / 3)


def test_lightgcn_without_users_of_its_own_is_history(split: Split, catalogue: Catalogue) -> None:
    """docs/architecture.md: a sum over a person's items in one table, against another table."""
    people, layers = histories(split), 3
    model = LightGCN(dim=3, layers=layers).build(people, catalogue)
    assert isinstance(model, LightGCNModel)
    torch.nn.init.zeros_(model.users)
    users, items = model()
    hop = user_item_graph(people.owners, people.items, N_USERS, N_ITEMS)
    both = (hop @ torch.eye(N_ITEMS)).T @ (hop @ torch.eye(N_ITEMS))
    odd = even = (model.items + both @ model.items) / (layers + 1)
    degrees = people.items.bincount(minlength=N_ITEMS).clamp(min=1)[:, None]
    query = people.total(odd / degrees.sqrt()) / people.norms()[:, None]
    torch.testing.assert_close(users @ items.T, query @ even.T)


def test_lattice_embeds_each_item_as_its_equations(split: Split, catalogue: Catalogue) -> None:
    people = histories(split)
    model = Lattice(dim=3, layers=1, neighbours=4, kept=0.75).build(people, catalogue)
    assert isinstance(model, LatticeModel)
    torch.nn.init.normal_(model.weights)
    users, items = model.eval()()
    hop = torch.zeros_like(model.items)
    shares = torch.softmax(model.weights, 0)
    for number, features in enumerate(catalogue.features.values()):
        mapped = torch.nn.functional.normalize(model.maps[number](model.features[number]), dim=1)
        cosines = mapped @ mapped.T
        cosines[:, ~torch.from_numpy(features.present)] = -2
        learnt = torch.zeros_like(cosines)
        for item in np.flatnonzero(features.present):
            best = cosines[item].topk(4).indices
            learnt[item, best] = cosines[item, best].clamp(min=0)
        scale = learnt.sum(1).clamp(min=1e-7) ** -0.5
        fixed = item_graph(features, 4, weighted=True) @ torch.eye(N_ITEMS)
        hop = hop + shares[number] * (0.75 * fixed + 0.25 * scale[:, None] * learnt * scale) @ model.items
    own = torch.cat([model.users, model.items])
    near = (own + histories_graph(people) @ own) / 2
    torch.testing.assert_close(users, near[:N_USERS])
    torch.testing.assert_close(items, near[N_USERS:] + hop / hop.norm(dim=1, keepdim=True).clamp(min=1e-12))


@pytest.mark.parametrize("kind", [SASRec, GRU4Rec])
def test_a_sequence_model_asks_for_each_event_after_those_before(kind: type[SequenceBaseline], split: Split) -> None:
    people, items = histories(split), Catalogue((), (), (), (), {})
    model = kind(dim=4, length=3).build(people, items)
    assert isinstance(model, SequenceModel)
    users = torch.tensor([3, 40])
    terms = []
    for user in users.tolist():
        read = people.items[people.offsets[user] : people.offsets[user + 1]].tolist()[-4:]
        for at in range(1, 4):
            state = model.eval().known(single(read[:at], N_ITEMS, "somebody"))
            terms.append(-torch.log_softmax(state @ model.items.T, 1)[0, read[at]])
    torch.testing.assert_close(model.loss(users, users, users), torch.stack(terms).mean())


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


def test_weights_of_modalities_add_up() -> None:
    assert modality_weights(["image", "text"], 0.1) == {"image": 0.1, "text": 0.9}
    assert modality_weights(["audio", "image", "text"], 0.2) == {"image": 0.2, "audio": 0.4, "text": 0.4}
    assert modality_weights(["image"], 0.1) == {"image": 1.0}
    assert modality_weights(["audio", "text"], 0.1) == {"audio": 0.5, "text": 0.5}


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
