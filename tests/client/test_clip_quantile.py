"""A clip that is found while a run trains: what people say, what it does to the sum, what it costs, and that it arrives."""

import math
from pathlib import Path

import dp_accounting
import pytest
import torch
from dp_accounting import rdp

from tessera.client.per_person.training import CohortTraining
from tessera.client.privacy import clipped
from tessera.common.config.privacy import PrivacySettings
from tessera.common.errors import ConfigError
from tessera.common.privacy.accounting import Release, epsilon
from tessera.common.privacy.quantile import BELOW, HALF, half, moved, reach
from tessera.common.protocol.updates import Update
from tessera.deploy.executors.inline import execute
from tessera.server.strategies.fedvlr import FedVLR
from tests.client.test_privacy import BACKBONES, N_ITEMS, N_USERS, ordinary, sent, trained
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_catalogue, small_job, small_settings, small_split


def alone(settings, u: int) -> Update:
    """One person's gradients, trained by themselves."""
    return ordinary(settings, small_split(N_USERS, N_ITEMS).take(torch.tensor([u]).numpy()))[1]


@pytest.mark.parametrize("name", BACKBONES)
def test_the_sum_is_that_of_the_paper_person_by_person(name: str) -> None:
    """Algorithm 1, lines 16 to 19: clip each person's, and add up who was below."""
    plain = small_settings(local=BACKBONES[name] | {"weighting": "users"})
    people = [alone(plain, u) for u in range(N_USERS)]
    norms = [math.hypot(*(float(value.double().norm()) for value in one.gradients.values())) for one in people]
    clip = sorted(norms)[N_USERS // 3] * (1 + 1e-6)
    settings = small_settings(
        local=BACKBONES[name] | {"weighting": "users"}, privacy={"clip": clip, "clip_quantile": 0.5}
    )
    _, update = trained(settings)
    assert float(update.gradients[BELOW]) == pytest.approx(
        HALF * clip * sum(1 if norm <= clip else -1 for norm in norms), rel=1e-5
    )
    for key in people[0].gradients:
        naive = sum(one.gradients[key] * (clip / max(norm, clip)) for one, norm in zip(people, norms, strict=True))
        torch.testing.assert_close(update.gradients[key], naive, rtol=1e-4, atol=1e-6)
    _, fixed = trained(small_settings(local=BACKBONES[name] | {"weighting": "users"}, privacy={"clip": clip}))
    assert BELOW not in fixed.gradients


def test_the_share_below_and_the_step_are_the_papers() -> None:
    privacy = PrivacySettings(clip=2.0, clip_quantile=0.75)
    total = half(privacy) * (60 - 40)
    clip, share = moved(privacy, total, 100)
    assert share == pytest.approx(0.6)
    assert clip == pytest.approx(2.0 * math.exp(-0.2 * (0.6 - 0.75)))


def test_noise_on_both_is_worth_what_the_paper_says() -> None:
    """Theorem 1, counted by another library: sums of z_g on the gradients and of z_b on the bits, over the same rounds."""
    privacy, z, rounds, delta = PrivacySettings(clip=0.3, clip_quantile=0.5, noise_multiplier=1.3), 1.3, 40, 1e-5
    deviation = z * reach(privacy)
    gradients, bits = deviation / privacy.clip, deviation / (2 * half(privacy))  # a bit is 0 or 1 and stands for 2 half
    assert z**-2 == pytest.approx(gradients**-2 + (2 * bits) ** -2)
    accountant = rdp.RdpAccountant()
    both = [dp_accounting.GaussianDpEvent(gradients), dp_accounting.GaussianDpEvent(2 * bits)]
    accountant.compose(dp_accounting.ComposedDpEvent(both), rounds)
    exact = epsilon({Release(z): rounds}, delta)
    assert exact <= accountant.get_epsilon(delta) <= exact * 1.1  # by Renyi divergences, which lose a little
    assert gradients / z == pytest.approx(1.005, abs=1e-4), "what finding a clip costs"


def test_noise_is_on_the_bit_too_and_as_large() -> None:
    settings = {"clip": 1e-3, "clip_quantile": 0.5, "noise_multiplier": 50.0}
    local = BACKBONES["history"] | {"weighting": "users"}
    said = []
    for round in range(1, 80):
        _, update = trained(small_settings(local=local, privacy=settings), round=round)
        said.append(float(update.gradients[BELOW]))
        wanted = 50.0 * 1e-3 * math.sqrt(1 + HALF**2) * math.sqrt(N_USERS)
        assert float(update.gradients["views"].std()) == pytest.approx(wanted, rel=0.1)
    assert torch.tensor(said).std().item() == pytest.approx(wanted, rel=0.3)


@pytest.mark.parametrize(
    ("start", "privacy"),
    [
        (0.9, {}),
        (0.03, {"secure": True}),
        (0.9, {"secure": True, "noise": "distributed", "noise_multiplier": 0.05}),
    ],
)
def test_a_run_finds_the_quantile_from_either_side(tmp_path: Path, start: float, privacy: dict) -> None:
    """Plain, under masks, and with noise: the clip that the run ends with is what so many people's norms are below."""
    changes = {
        "rounds": 40,
        "local": {"backbone": "history", "loss": "softmax", "weighting": "users", "learning_rate": 1e-6},
        "server": {"learning_rate": 1e-9},  # nothing moves but the clip
        "evaluation": {"every": 40, "ks": [10], "baselines": False},
        "privacy": {"clip": start, "clip_quantile": 0.7, **privacy},
    }
    job = small_job(tmp_path, "run", 4, **changes)
    execute(job, silent)
    told = [line for line in (job.run_dir / "run.log").read_text().splitlines() if "clip " in line]
    clips = [float(line.split("next ")[1]) for line in told]
    assert len(clips) == 40
    above = [float(line.split("about ")[1].split("%")[0]) for line in told[-10:]]
    assert sum(above) / len(above) == pytest.approx(30, abs=15)
    assert abs(math.log(clips[-1] / start)) > 0.7


def test_a_person_whose_gradients_are_not_finite_counts_nothing_and_is_above() -> None:
    settings = small_settings(local=BACKBONES["history"] | {"weighting": "users"})
    split = small_split(N_USERS, N_ITEMS)
    broken = sent() | {"history": torch.full((N_ITEMS, 8), torch.nan)}
    from tessera.client import cohort

    state = cohort.start_state(split.users, settings.local, sent()["views"], settings.seed)
    _, updates = next(iter(CohortTraining(broken, settings.local, 0, 1).apart(state, split)))
    total = clipped(updates, 1.0, 0.1).total()
    assert float(total.gradients[BELOW]) == pytest.approx(-0.1 * len(updates.factors))
    assert not total.gradients["views"].any()


def test_a_quantile_needs_a_clip_to_begin_with() -> None:
    with pytest.raises(ConfigError, match="set clip to what it begins with"):
        small_settings(privacy={"clip_quantile": 0.5})


def test_a_resumed_run_goes_on_with_the_clip_it_had() -> None:
    settings = small_settings(local={"weighting": "users"}, privacy={"clip": 0.5, "clip_quantile": 0.5})
    strategy, again = (FedVLR(settings, small_catalogue(n_items=N_ITEMS)) for _ in range(2))
    views = strategy.build_views()
    gradients = {name: torch.ones_like(value) for name, value in views.items()}
    strategy.aggregate(Update(gradients | {BELOW: torch.tensor([0.05 * 10])}, 10.0))
    assert strategy.clip == pytest.approx(0.5 * math.exp(-0.2 * 0.5))
    again.restore(strategy.state())
    assert again.clip == strategy.clip
