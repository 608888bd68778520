"""Clipping bounds each person, noise has the size it says, and without either nothing changes."""

import math
from pathlib import Path

import pytest
import torch

from tessera.client import cohort, privacy
from tessera.client.histories import histories
from tessera.client.per_person.gradients import PersonGradients, PersonUpdates, Whole
from tessera.client.per_person.training import CohortTraining
from tessera.client.recommendation import RecommendationClient
from tessera.client.transforms import Origin, transforms
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Settings
from tessera.common.errors import ConfigError
from tessera.common.protocol.messages import Task
from tessera.common.protocol.tensors import content_hash
from tessera.common.protocol.updates import Update
from tessera.deploy.executors.inline import execute
from tests.support.catalogues import small_catalogue, small_dataset, small_job, small_settings, small_split
from tests.support.metrics import read_metrics

N_USERS, N_ITEMS, DIM, N_VIEWS = 9, 30, 8, 5
BACKBONES = {
    "history": {"backbone": "history", "loss": "softmax", "local_epochs": 2},
    "fedavg": {"backbone": "fedavg", "loss": "bce", "local_epochs": 3},
    "fcf": {"backbone": "fcf", "loss": "squares"},
    "pfedrec": {"backbone": "pfedrec", "loss": "bce", "optimizer": "sgd"},
}


def sent() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(N_VIEWS, N_ITEMS, DIM, generator=generator)
    return {"views": views, "history": torch.randn(N_ITEMS, DIM, generator=generator)}


def trained(settings: Settings, people=None, round: int = 1, simulated: bool = True):
    split = small_split(N_USERS, N_ITEMS) if people is None else people
    state = cohort.start_state(split.users, settings.local, sent()["views"], settings.seed)
    algorithm = CohortTraining(sent(), settings.local, settings.seed, round)
    return transforms(settings).train(algorithm, state, split, Origin(settings.seed, round, simulated=simulated))


def ordinary(settings: Settings, split) -> tuple[object, Update]:
    state = cohort.start_state(split.users, settings.local, sent()["views"], settings.seed)
    return cohort.train(state, sent(), histories(split), settings.local, settings.seed, 1)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_clip_nobody_reaches_changes_nothing(name: str) -> None:
    settings = small_settings(local=BACKBONES[name], privacy={"clip": 1e9})
    state, update = trained(settings)
    plain_state, plain = ordinary(settings, small_split(N_USERS, N_ITEMS))
    assert update.weight == plain.weight
    assert update.sums["loss"] == pytest.approx(plain.sums["loss"])
    assert state.users == plain_state.users
    for key, gradient in plain.gradients.items():
        torch.testing.assert_close(update.gradients[key], gradient, rtol=1e-5, atol=1e-6)
    for key, value in plain_state.parameters.items():
        torch.testing.assert_close(state.parameters[key], value, rtol=1e-5, atol=1e-6)


def test_noise_has_the_stated_size_and_is_not_repeated() -> None:
    clip_only = small_settings(privacy={"clip": 0.5})
    noisy = small_settings(privacy={"clip": 0.5, "noise_multiplier": 2.0})
    draws = []
    for round, simulated in ((1, True), (2, True), (1, False), (1, False)):
        exact, update = (trained(settings, None, round, simulated)[1].gradients for settings in (clip_only, noisy))
        draws.append(torch.cat([(update[name] - exact[name]).flatten() for name in sent()]))
    for noise in draws:  # within five standard errors: two of the draws are the machine's own, anew each time
        apart = 5 / math.sqrt(2 * len(noise))
        assert float(noise.std()) == pytest.approx(2.0 * 0.5 * math.sqrt(N_USERS), rel=apart)
    assert abs(float(draws[0].mean())) < 4 * 3 / math.sqrt(len(draws[0]))
    for one in range(4):
        for other in range(one):
            assert abs(float(torch.corrcoef(torch.stack([draws[one], draws[other]]))[0, 1])) < 0.1
    torch.testing.assert_close(trained(noisy)[1].gradients, trained(noisy)[1].gradients)  # a simulation can be repeated


def test_a_device_draws_noise_that_the_run_does_not_determine(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "data")
    settings = small_settings(privacy={"clip": 1.0, "noise_multiplier": 1.0})
    tensors = {"views": torch.randn(7, 40, 8), "history": torch.randn(40, 8)}
    task = Task(
        "train", "run", 1, (), (), small_catalogue(40).sha256, DeviceSettings.of(settings), content_hash(tensors)
    )

    def upload(simulated: bool) -> torch.Tensor:
        return RecommendationClient(dataset, simulated).perform(task, tensors, {}).gradients["views"]

    assert torch.equal(upload(simulated=True), upload(simulated=True))
    assert not torch.equal(upload(simulated=False), upload(simulated=False))


def test_clipped_runs_agree_on_any_number_of_nodes_and_noisy_ones_can_be_repeated(tmp_path: Path) -> None:
    def losses(name: str, nodes: int, **privacy_settings: float) -> list[float]:
        job = small_job(tmp_path, name, nodes, local={"backbone": "history"}, privacy=privacy_settings)
        execute(job, lambda line: None)
        return [line["loss"] for line in read_metrics(job.run_dir) if line["kind"] == "round"]

    clipped = losses("one", 1, clip=0.3)
    assert losses("three", 3, clip=0.3) == pytest.approx(clipped, rel=1e-5)
    assert losses("plain", 1) != pytest.approx(clipped, rel=1e-5)
    noisy = losses("noisy", 2, clip=0.3, noise_multiplier=0.5)
    assert losses("again", 2, clip=0.3, noise_multiplier=0.5) == noisy
    assert noisy != pytest.approx(clipped, rel=1e-5)


def test_settings_that_would_not_protect_are_refused() -> None:
    for changes, message in (
        ({"privacy": {"noise_multiplier": 1.0}}, "multiple of clip"),
        ({"privacy": {"clip": 1.0}, "local": {"weighting": "examples"}}, "weighting to users"),
        ({"privacy": {"clip": 1.0, "noise_multiplier": 1.0}, "views": {"spectral_rounds": 2}}, "spectral_rounds to 0"),
        ({"privacy": {"clip": 1.0, "noise_multiplier": 1.0, "noise": "distributed"}}, "set secure to true"),
        ({"privacy": {"clip": 1.0, "max_epsilon": 3}}, "noise_multiplier above 0"),
        ({"privacy": {"clip": 1.0, "noise_multiplier": 1.0, "noise_share": 0.4}}, "noise distributed"),
    ):
        with pytest.raises(ConfigError, match=message):
            small_settings(**changes)


def test_who_is_not_finite_counts_nothing_and_changes_nobody_else() -> None:
    """What one person's data may do to a sum is bounded, whatever they are."""
    sound = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    broken = torch.cat([sound, torch.tensor([[float("nan"), float("inf")]])])
    totals = []
    for gradients in (sound, broken):
        people = PersonGradients(len(gradients), gradients.shape[1:], (Whole(gradients),))
        totals.append(
            privacy.clipped(PersonUpdates({"views": people}, Update(), torch.ones(len(gradients))), 2.0).total()
        )
    assert torch.equal(totals[0].gradients["views"], totals[1].gradients["views"])
    assert totals[0].gradients["views"].tolist() == pytest.approx([1.2, 2.6])
