"""The contract of every backbone, with and without content: what holds for one holds for all."""

import math
from pathlib import Path

import pytest
import torch

from tessera.client import cohort
from tessera.client.backbones import BackboneInput, make_backbone
from tessera.client.histories import histories
from tessera.client.router import Routed
from tessera.common.config.settings import LocalSettings
from tessera.common.registry.backbones import BACKBONES
from tessera.deploy.executors import inline
from tessera.server.strategies.fedvlr import FedVLR
from tessera.testing import BackboneContract
from tests.support.catalogues import small_catalogue, small_job, small_settings, small_split
from tests.support.metrics import read_metrics

LOCAL = {
    "fedavg": {"loss": "bce", "local_epochs": 2},
    "fcf": {"loss": "squares", "history_mask": 0.0},
    "fedncf": {"loss": "bce", "local_epochs": 2},
    "pfedrec": {"loss": "bce", "local_epochs": 2, "optimizer": "sgd", "learning_rate": 0.5},
    "fedrap": {"loss": "bce", "local_epochs": 2, "optimizer": "sgd", "learning_rate": 0.5},
    "history": {"loss": "softmax"},
    "cosine": {"loss": "softmax"},
    "sasrec": {"loss": "next"},
    "gru4rec": {"loss": "next"},
}
MODES = {
    "id": {"operators": [], "single": True, "modalities": []},
    "mlp": {"operators": ["mlp"], "single": False},
    "vbpr": {"operators": ["concat"], "single": False},
    "views": {},
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
every_mode = pytest.mark.parametrize("mode", MODES)


def start(backbone: str, mode: str = "views") -> tuple[LocalSettings, FedVLR]:
    """A strategy in double precision over a small catalogue."""
    local = {"backbone": backbone, "learning_rate": 0.05, **LOCAL[backbone]}
    settings = small_settings(local=local, views={"dim": 8, "id_dim": 8, **MODES[mode]}, server={"learning_rate": 0.02})
    strategy = FedVLR(settings, small_catalogue(n_items=30))
    strategy.generator.double()
    return settings.local, strategy


def double(split):
    return histories(split).to(torch.device("cpu"), torch.float64)


def score_one(backbone: str, private: dict, sent: dict, fbar: torch.Tensor, items: list[int], i: int) -> torch.Tensor:
    if backbone == "history":
        query = sum(sent["history"][k] for k in items) / math.sqrt(len(items)) + private["user"]
        return query @ fbar[i]
    if backbone == "cosine":
        query = sum(fbar[k] for k in items) / len(items) + private["user"]
        return torch.cosine_similarity(query, fbar[i], dim=0) / 0.1
    if backbone == "fcf":
        wanted = torch.zeros(len(fbar), dtype=torch.float64)
        wanted[items] = 1
        system = fbar.T @ ((1 + 10 * wanted)[:, None] * fbar) + torch.eye(fbar.shape[1], dtype=torch.float64)
        return torch.linalg.solve(system, fbar.T @ (11 * wanted)) @ fbar[i]
    if backbone == "fedncf":
        both = torch.cat([sent["ncf_user"], sent["ncf_item"]], dim=1)
        first = torch.relu(both @ torch.cat([private["user"], fbar[i]]) + sent["ncf_bias"])
        return torch.relu(sent["ncf_hidden"] @ first + sent["ncf_hidden_bias"]) @ sent["ncf_out"]
    own = private["tuned"][i] if backbone == "pfedrec" else private["items"][i] if backbone == "fedrap" else 0
    return private["head"] @ (fbar[i] + own) + private["bias"][0]


class Contract(BackboneContract):
    """With the scores of one user and one item at a time."""

    def naive_score(self, private, sent, fbar, items, item):
        if self.name in ("sasrec", "gru4rec"):  # written out in tests/client/test_sequences.py
            return None
        return score_one(self.name, private, sent, fbar, items, item)


for backbone in BACKBONES:
    name = f"Test{backbone.title()}"
    globals()[name] = type(name, (Contract,), {"name": backbone, "local": LOCAL[backbone]})


def test_every_backbone_is_held_to_the_contract() -> None:
    assert LOCAL.keys() == set(BACKBONES)


@every_backbone
@every_mode
def test_gradients_reach_every_shared_part_and_users_differ(backbone: str, mode: str) -> None:
    local, strategy = start(backbone, mode)
    split = small_split(n_users=9, n_items=30)
    before = {name: value.clone() for name, value in strategy.generator.state_dict().items()}
    state = cohort.start_state(split.users, local, strategy.build_views()["views"], seed=0)
    for round in (1, 2, 3):
        state, update = cohort.train(state, strategy.build_views(), double(split), local, 0, round)
        strategy.aggregate(update)
    stuck = [name for name, value in strategy.generator.state_dict().items() if torch.equal(before[name], value)]
    assert not stuck
    if backbone == "fcf":  # nothing of FCF's own is kept: it follows from the history
        own = cohort.scores(state.parameters, strategy.build_views(), double(split), local)[0]
    else:
        own = next(value for name, value in state.parameters.items() if name in ("user", "head"))
    assert all(not torch.equal(own[0], own[row]) for row in range(1, 9))


@every_backbone
def test_beats_chance_and_state_survives_rounds(tmp_path: Path, backbone: str) -> None:
    """Users of two kinds, each buying within their half of the catalogue: a few rounds must find it out."""
    local = {"backbone": backbone, "learning_rate": 0.05, **LOCAL[backbone], "weight_decay": 0.0}
    changes = {"rounds": 40, "local": local, "server": {"learning_rate": 0.05}, "evaluation": {"every": 40, "ks": [10]}}
    inline.execute(small_job(tmp_path, "run", 2, planted=True, **changes), lambda line: None)
    scores = read_metrics(tmp_path / "run")[-1]["scores"]
    assert scores["test/all/hr@10"] > 1.4 * 100 * 10 / 55  # 10 of about 55 candidates by chance


def test_fcf_solves_the_weighted_squares_of_each_user() -> None:
    local, strategy = start("fcf")
    split, views = small_split(n_users=5, n_items=30), strategy.build_views()["views"]
    weights = torch.softmax(torch.randn(5, len(views), dtype=torch.float64), dim=1)
    fcf = make_backbone(local.backbone)
    found = fcf.solved(BackboneInput({}, {}, double(split), Routed(views, weights)))["user"]
    for u in range(5):
        fbar = torch.einsum("g,gnd->nd", weights[u], views)
        wanted = torch.zeros(30, dtype=torch.float64)
        wanted[split.train_items[split.offsets[u] : split.offsets[u + 1]]] = 1
        c = 1 + local.backbone.confidence * wanted
        system = fbar.T @ (c[:, None] * fbar) + local.backbone.ridge * torch.eye(8, dtype=torch.float64)
        torch.testing.assert_close(found[u], torch.linalg.solve(system, fbar.T @ (c * wanted)), rtol=1e-7, atol=1e-9)


def test_fedrap_penalty_sets_in_with_the_rounds_and_is_bounded() -> None:
    local, strategy = start("fedrap")
    split, sent = small_split(n_users=3, n_items=30), strategy.build_views()
    state = cohort.start_state(split.users, local, sent["views"], seed=1)
    state.parameters["items"].normal_(std=100)
    given = cohort.routed(state.parameters, sent, double(split), local)
    backbone = make_backbone(local.backbone)
    assert torch.equal(backbone.penalty(given, 0), torch.zeros(3, dtype=torch.float64))
    early, late = (backbone.penalty(given, round) for round in (1, 50))
    assert (early.abs() < late.abs()).all()
    assert (late > -local.backbone.difference_weight).all()


def test_pfedrec_tunes_items_anew_in_every_round() -> None:
    local, strategy = start("pfedrec")
    split, sent = small_split(n_users=3, n_items=30), strategy.build_views()
    state = cohort.start_state(split.users, local, sent["views"], seed=1)
    moved, _ = cohort.train(state, sent, double(split), local, seed=1, round=1)
    assert moved.parameters["tuned"].abs().max() > 0
    moved.parameters["tuned"].fill_(1e6)  # would drown everything if it were kept
    again, update = cohort.train(moved, sent, double(split), local, seed=1, round=2)
    assert again.parameters["tuned"].abs().max() < 1e3
    assert update.sums["loss"] < 1e3
