"""Cold items and cold users: nothing of them is in any training, on however many devices; content finds the items."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.data.interactions import Part, load_interactions
from tessera.common.data.splits import item_parts, make_split
from tessera.common.data.targets import ABSENT
from tessera.common.datasets import convert_shop
from tessera.common.protocol.messages import BASIS, COUNTS, Task
from tessera.common.protocol.tensors import content_hash
from tessera.common.protocol.updates import Update
from tessera.deploy.executors import inline
from tessera.deploy.executors.run import make_job
from tessera.deploy.job import Job
from tests.support.catalogues import small_interactions, small_job, small_settings
from tests.support.metrics import read_metrics
from tests.support.splits import settings

SHARE = 0.2
COLD_ITEMS, COLD_USERS = {"folder": "small", "cold_items": SHARE}, {"folder": "small", "cold_users": 0.3}
BACKBONES = {"history": "softmax", "fedavg": "bce", "fcf": "squares", "fedrap": "bce"}


def asked(kind: str, job: Job, tensors: dict[str, torch.Tensor], round: int = 1) -> Task:
    catalogue = RecommendationClient(job.devices[0]).catalogue().sha256
    return Task(
        kind, "run", round, (), ("one", "two"), catalogue, DeviceSettings.of(job.settings), content_hash(tensors)
    )  # type: ignore[arg-type]


def views(n_items: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "views": torch.randn(2, n_items, 8, generator=generator),
        "history": torch.randn(n_items, 8, generator=generator),
    }


@pytest.mark.parametrize("nodes", [1, 3, 14])
def test_cold_items_are_in_no_training_of_any_device_and_targets_are_cold(tmp_path: Path, nodes: int) -> None:
    job = small_job(tmp_path, nodes=nodes, data=COLD_ITEMS, seed=5)
    parts = item_parts(40, SHARE, seed=5)
    seen, targets = {}, {}
    for folder in job.devices:
        split = RecommendationClient(folder).split(job.settings)
        assert (parts[split.train_items] == Part.TRAIN).all()
        for held_out, part in ((split.validation, Part.VALIDATION), (split.test, Part.TEST)):
            assert (parts[held_out.items] == part).all()
        targets |= dict(zip(split.users, zip(split.validation.first(), split.test.first(), strict=True), strict=True))
        seen |= dict(zip(split.users, np.diff(split.offsets), strict=True))
    whole = make_split(load_interactions(tmp_path / "small", 40), job.settings.data, 5)
    assert targets == dict(
        zip(whole.users, zip(whole.validation.first(), whole.test.first(), strict=True), strict=True)
    )
    assert sum(test != ABSENT for _, test in targets.values()) >= 5
    assert sum(seen.values()) == len(whole.train_items)


def test_the_last_event_on_a_cold_item_is_the_target() -> None:
    events = small_interactions(30, 40)
    split = make_split(events, settings(data=COLD_ITEMS).data, seed=0)
    parts = item_parts(40, SHARE, seed=0)
    for row in range(30):
        own = events.items[events.offsets[row] : events.offsets[row + 1]]
        for held_out, part in ((split.validation, Part.VALIDATION), (split.test, Part.TEST)):
            cold = own[parts[own] == part]
            assert held_out.take(np.array([row])).items.tolist() == cold[-1:].tolist()
        np.testing.assert_array_equal(
            split.train_items[split.offsets[row] : split.offsets[row + 1]], own[parts[own] == Part.TRAIN]
        )


def test_seeds_draw_other_items_in_the_share_asked_for() -> None:
    first, second = (item_parts(5000, 0.1, seed) for seed in (0, 1))
    for part in (Part.VALIDATION, Part.TEST):
        assert (first == part).mean() == pytest.approx(0.1, abs=0.02)
    assert ((first == Part.TEST) & (second == Part.TEST)).mean() == pytest.approx(0.01, abs=0.006)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cold_items_get_no_gradient(tmp_path: Path, backbone: str) -> None:
    """Neither as events, nor as negatives, nor as competitors: a softmax would push them all down."""
    local = {"backbone": backbone, "loss": BACKBONES[backbone], "local_epochs": 2}
    job = small_job(tmp_path, nodes=1, data=COLD_ITEMS, local=local)
    sent = {name: value for name, value in views(40).items() if name == "views" or backbone == "history"}
    update = RecommendationClient(job.devices[0]).perform(asked("train", job, sent), sent, {})
    cold = torch.from_numpy(item_parts(40, SHARE, job.settings.seed) != Part.TRAIN)
    moved = update.gradients["views"].abs().sum((0, 2)) > 0
    assert not moved[cold].any()
    assert moved[~cold].float().mean() > 0.9


def without_new_users(job: Job, into: Path) -> RecommendationClient:
    """A device that only hosts the people who are not new."""
    whole = RecommendationClient(job.devices[0])
    members = set(whole.split(job.settings).training_users().users)
    interactions = load_interactions(job.devices[0], len(whole.catalogue()))
    for path in job.devices[0].glob("items.*"):
        into.mkdir(exist_ok=True)
        (into / path.name).write_bytes(path.read_bytes())
    interactions.take(np.flatnonzero([user in members for user in interactions.users])).save(into)
    return RecommendationClient(into)


def assert_same(left: Update, right: Update) -> None:
    assert (left.weight, left.sums.values) == (pytest.approx(right.weight), pytest.approx(dict(right.sums.values)))
    for mine, theirs in ((left.gradients, right.gradients), (left.counts, right.counts)):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name])


def test_new_users_leave_nothing_in_what_a_device_returns(tmp_path: Path) -> None:
    job = small_job(tmp_path, nodes=1, data=COLD_USERS)
    whole, members = RecommendationClient(job.devices[0]), without_new_users(job, tmp_path / "members")
    new = whole.split(job.settings).new_users()
    assert 2 <= len(new.users) <= 10
    sent = views(40)
    for kind, inputs in (("item_statistics", {}), ("power", {BASIS: torch.randn(40, 5)}), ("train", {})):
        task = asked(kind, job, sent)
        assert_same(whole.perform(task, sent, inputs), members.perform(task, sent, inputs))
    task = asked("evaluate", job, sent)
    apart, plain = (device.perform(task, sent, {COUNTS: torch.ones(40)}).sums for device in (whole, members))
    assert {name: value for name, value in apart.values.items() if "new-users" not in name} == pytest.approx(
        dict(plain.values)
    )
    tested = new.test.people
    assert apart["test/new-users/users"] == apart["test/new-users-untrained/users"] == tested


def test_a_device_of_new_users_alone_withholds_nothing_from_the_item_statistics(tmp_path: Path) -> None:
    """One person's counts would be their history, and are missed by everybody; nobody's counts are zeros."""
    job = small_job(tmp_path, nodes=14, data=COLD_USERS)
    sent = views(40)
    for folder in job.devices:
        device = RecommendationClient(folder)
        answer = device.perform(asked("item_statistics", job, sent), None, {})
        assert (COUNTS in answer.counts) != bool(device.split(job.settings).training_users().users)


def test_new_users_learn_on_their_own_device_and_are_evaluated_apart(tmp_path: Path) -> None:
    """Trained, their parameters are other than those of the start; the same on any number of devices."""
    found = []
    for nodes in (1, 2):
        job = small_job(tmp_path, f"nodes-{nodes}", nodes, data=COLD_USERS, server={"optimizer": "sgd"})
        inline.execute(job, lambda line: None)
        lines = read_metrics(tmp_path / f"nodes-{nodes}")
        found.append([line["scores"] for line in lines if line["kind"] == "evaluation"][-1])
        statistics = lines[0]
        (baselines,) = (line["scores"] for line in lines if line["kind"] == "baselines")
        assert (statistics["users"], baselines["random/test/all/users"]) == (found[-1]["test/all/users"],) * 2
        assert baselines["random/test/new-users/users"] == found[-1]["test/new-users/users"]
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    assert found[0]["test/all/users"] + found[0]["test/new-users/users"] == 14
    assert any(
        found[0][f"{part}/new-users/ndcg@50"] != found[0][f"{part}/new-users-untrained/ndcg@50"]
        for part in ("validation", "test")
    )


def test_item_ids_say_nothing_of_cold_items_and_contents_do(tmp_path: Path) -> None:
    """On the demo shop, where people go by picture and text. Ranked among all, items whose ids were never trained are at most
    at chance: the trained ones stand above them."""
    convert_shop(tmp_path / "shop", 400, 240, seed=3)
    found = {}
    for name, views in (("id", {"operators": [], "modalities": []}), ("views", {})):
        chosen = small_settings(
            name=name,
            data={"folder": "shop", "cold_items": SHARE},
            rounds=20,
            views={"dim": 32, "id_dim": 32, **views},
            server={"learning_rate": 0.01, "weight_decay": 1.0},
            evaluation={"every": 5, "ks": [20]},
        )
        job = make_job(chosen, tmp_path / "shop", tmp_path / name, resume=False, overwrite=False)
        inline.execute(job, lambda line: None)
        found[name] = read_metrics(tmp_path / name)[-1]
    scores, people = {name: line["scores"]["test/all/hr@20"] / 100 for name, line in found.items()}, 240
    chance = found["id"]["baselines"]["random/test/all/hr@20"] / 100
    assert found["id"]["scores"]["test/cold/users"] == people
    error = (chance * (1 - chance) / people) ** 0.5
    assert scores["id"] < chance + 3 * error
    assert scores["views"] > chance + 4 * error
    assert scores["views"] > 3 * scores["id"]
