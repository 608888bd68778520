"""Retired items: no gradient, no candidate, no evaluation, no recommendation; people still see that they had them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.client.evaluation import evaluate
from tessera.client.people.events import People
from tessera.client.recommend import Personal
from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.data.catalogue import load_catalogue, save_items
from tessera.common.data.interactions import load_interactions
from tessera.common.data.splits import make_split
from tessera.common.data.targets import ABSENT
from tessera.common.protocol.messages import BASIS, COUNTS, Task
from tessera.common.protocol.tensors import content_hash
from tessera.common.registry.backbones import BACKBONES
from tessera.common.registry.losses import LOSSES
from tessera.deploy.job import Job
from tests.support.backbones import shared_shapes
from tests.support.catalogues import small_job

RETIRED = np.isin(np.arange(40), [0, 3, 4, 17, 39])
PAIRS = [
    (backbone, loss)
    for backbone, spec in BACKBONES.known().items()
    for loss, asks in LOSSES.known().items()
    if (spec.asks_next or not asks.next_item) and (spec.views_alone or not asks.views_alone)
]


def views(backbone: str) -> dict[str, torch.Tensor]:
    generator, spec = torch.Generator().manual_seed(0), BACKBONES[backbone]
    sent = {"views": torch.randn(2, 40, 8, generator=generator)}
    if spec.history:
        sent["history"] = torch.randn(40, 8, generator=generator)
    return sent | {name: torch.randn(shape, generator=generator) for name, shape in shared_shapes(backbone, 8).items()}


def retired_job(folder: Path, **changes: object) -> Job:
    job = small_job(folder, nodes=1, **changes)
    save_items(replace(load_catalogue(job.devices[0], modalities=False), retired=RETIRED), job.devices[0])
    return job


def asked(kind: str, job: Job, tensors: dict[str, torch.Tensor], round: int = 1) -> Task:
    catalogue = RecommendationClient(job.devices[0]).catalogue().sha256
    settings = DeviceSettings.of(job.settings)
    return Task(kind, "run", round, (), ("one", "two"), catalogue, settings, content_hash(tensors))  # type: ignore[arg-type]


@pytest.mark.parametrize(("backbone", "loss"), PAIRS)
def test_retired_items_get_no_gradient(tmp_path: Path, backbone: str, loss: str) -> None:
    job = retired_job(tmp_path, local={"backbone": backbone, "loss": loss, "local_epochs": 2, "recency": 0.5})
    sent, device = views(backbone), RecommendationClient(job.devices[0])
    update = device.perform(asked("train", job, sent, round=3), sent, {})
    for name in sent.keys() & {"views", "history"}:
        moved = update.gradients[name].reshape(-1, 40, 8).abs().sum((0, 2)) > 0
        assert not moved[torch.from_numpy(RETIRED)].any()
        assert moved.any()


def test_statistics_and_power_iterations_leave_retired_items_out(tmp_path: Path) -> None:
    job = retired_job(tmp_path)
    device = RecommendationClient(job.devices[0])
    counts = device.perform(asked("item_statistics", job, {}), None, {}).counts[COUNTS]
    product = device.perform(asked("power", job, {}), None, {BASIS: torch.randn(40, 5)}).counts[BASIS]
    assert not counts[torch.from_numpy(RETIRED)].any()
    assert not product[torch.from_numpy(RETIRED)].any()


def test_what_is_held_out_stays_so_and_whose_item_is_retired_is_not_evaluated(tmp_path: Path) -> None:
    job = small_job(tmp_path, nodes=1)
    events = load_interactions(job.devices[0], 40)
    before = make_split(events, job.settings.data, 0)
    after = make_split(events, job.settings.data, 0, RETIRED)
    for one, other in ((before.validation, after.validation), (before.test, after.test)):
        np.testing.assert_array_equal(other.first(), np.where(RETIRED[one.first()], ABSENT, one.first()))
    assert not RETIRED[after.train_items].any()
    assert len(after.train_items) == (~RETIRED[before.train_items]).sum()
    part = after.take(np.array([1, 3]))
    assert part.retired is not None
    assert not RETIRED[part.train_items].any()


def test_retired_items_are_recommended_to_nobody_yet_people_see_that_they_had_them(tmp_path: Path) -> None:
    job = retired_job(tmp_path, views={"dim": 8, "id_dim": 8, "operators": []})
    sent, device = views("history"), RecommendationClient(job.devices[0])
    device.perform(asked("train", job, sent), sent, {})
    catalogue, personal = device.catalogue(), Personal.open(job.devices[0])
    gone = {catalogue.items[row] for row in np.flatnonzero(RETIRED)}
    before = load_interactions(job.devices[0], 40)
    seen = set()
    for row, user in enumerate(before.users):
        recommended = {one.item for one in personal.recommend(user, 40)[0]}
        had = {catalogue.items[item] for item in before.items[before.offsets[row] : before.offsets[row + 1]]}
        assert recommended == set(catalogue.items) - gone - had
        seen |= {event.item for event in People(job.devices[0]).events(user)} & gone
    assert seen == gone & {catalogue.items[item] for item in before.items}


def test_ranks_are_among_items_that_are_not_retired(tmp_path: Path) -> None:
    """Scores that put retired items first cost nobody a place."""
    job = retired_job(tmp_path)
    split = RecommendationClient(job.devices[0]).split(DeviceSettings.of(job.settings))
    first = torch.from_numpy(np.where(RETIRED, 100.0, 0.0)) + torch.arange(40) / 40
    worst = torch.from_numpy(np.where(RETIRED, -100.0, 0.0)) + torch.arange(40) / 40
    one, other = (
        evaluate(lambda users, s=scores: s.float().expand(len(users), -1), split, job.settings.evaluation, None)
        for scores in (first, worst)
    )
    assert one.values == other.values
