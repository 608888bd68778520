"""How alike a person's items are in a view, and what that tells a router: laws of the prior, and runs with it."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.aspects.cohesion import cohesion, cohesion_sum, prior
from tessera.client.histories import Histories, histories
from tessera.client.per_person.training import CohortTraining
from tessera.client.recommend import Personal
from tessera.client.recommendation import _cohesion, _without_one
from tessera.client.transforms import Clip, Origin, Transforms
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import LocalSettings
from tessera.common.data.interactions import Split
from tessera.common.protocol.messages import COHESION, HISTORY, VIEWS
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.deploy.executors import inline
from tessera.deploy.executors import ray as simulate
from tessera.server.strategies.fedvlr import SPREAD
from tests.deploy.test_executors import SGD, assert_bitwise, assert_same_run, last_checkpoint, silent
from tests.support.catalogues import small_job, small_settings, small_split
from tests.support.splits import ragged, shuffled, split_of

N_VIEWS, N_ITEMS, DIM = 4, 30, 6
TOLERANCE = 2e-5
"""What rounding may move in a few rounds: the logarithm makes more of it where items are hardly alike, as in drawn data."""
PRIOR = LocalSettings(prior=1.0, history_mask=0.3, local_epochs=2)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(split: Split) -> Histories:
    return histories(split).to(torch.device("cpu"), torch.float64)


def sent() -> dict[str, torch.Tensor]:
    mean = torch.tensor([0.2, 0.05, 0.1, 0.4], dtype=torch.float64)
    return {VIEWS: drawn(N_VIEWS, N_ITEMS, DIM), HISTORY: drawn(N_ITEMS, DIM, seed=1), COHESION: mean}


def device_settings() -> DeviceSettings:
    return DeviceSettings.of(small_settings(local={"prior": 1.0}))


def some() -> Histories:
    """People with ten, two, one and no events, some of them hidden, the older the less they count."""
    known = people(split_of(ragged(0, [10, 9, 2, 1, 0], N_ITEMS), N_ITEMS)).aged(0.5)
    return known.hidden(0.3, salt=4)


def test_it_is_the_mean_cosine_of_pairs_as_their_events_count() -> None:
    views, known = drawn(N_VIEWS, N_ITEMS, DIM) + 1, some()
    views[0, ::2] = views[0, 1::2].mean(0)  # every other item is at the mean: it shows nothing
    found = cohesion(known, views)
    for user, view in itertools.product(range(len(known)), range(N_VIEWS)):
        own = (known.owners == user).nonzero()[:, 0].tolist()
        rows = [(float(known.shown[at]), views[view, known.items[at]] - views[view].mean(0)) for at in own]
        rows = [(count, row) for count, row in rows if row.norm() > 1e-9]
        pairs = [
            (a * b, float(x @ y / x.norm() / y.norm())) for (a, x), (b, y) in itertools.permutations(rows, 2) if a * b
        ]
        if not pairs:
            assert found[user, view].isnan()
            continue
        wanted = sum(count * cosine for count, cosine in pairs) / sum(count for count, _ in pairs)
        assert float(found[user, view]) == pytest.approx(max(wanted, 0), abs=1e-9)


def test_scale_rotation_and_names_of_views_change_nothing() -> None:
    views, mean, known = drawn(N_VIEWS, N_ITEMS, DIM), sent()[COHESION], some()
    before = prior(known, views, mean)
    turn = torch.linalg.qr(drawn(DIM, DIM, seed=2)).Q
    turned = torch.stack([views[0] * 7, views[1] @ turn, views[2] + 3, -0.1 * views[3] @ turn])
    torch.testing.assert_close(prior(known, turned, mean), before)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(prior(known, views[order], mean[order]), before[:, order])
    assert not before[-2:].any(), "nothing is known of who has fewer than two events"
    own = prior(known, torch.cat([views, drawn(1, N_ITEMS, DIM, seed=3)]), mean)
    assert torch.equal(own, torch.cat([before, torch.zeros(len(known), 1)], 1)), "nor of a view without a mean"


def test_who_is_as_all_are_has_no_prior_and_nobody_has_less_than_the_smoothing_leaves() -> None:
    views, known = drawn(N_VIEWS, N_ITEMS, DIM), people(split_of([[1, 2, 3]], N_ITEMS))
    alike = cohesion(known, views)[0]
    own = prior(known, views, alike)[0]
    assert own[alike > 0].tolist() == pytest.approx([0] * int((alike > 0).sum()))
    assert float(prior(known, views, torch.full((N_VIEWS,), 1e9))[0].min()) == pytest.approx(math.log(0.1 / 1.1))


def test_sums_over_people_are_dealt_out_in_any_way() -> None:
    split, views = split_of(ragged(1, [5, 1, 8, 2, 6], N_ITEMS), N_ITEMS), drawn(N_VIEWS, N_ITEMS, DIM)
    whole = cohesion_sum(people(split), views)
    parts = [cohesion_sum(people(split.take(np.array(rows))), views) for rows in ([3, 0], [1], [4, 2])]
    torch.testing.assert_close(sum(parts), whole)
    assert whole[1].tolist() == [4] * N_VIEWS, "one person has a single event"


def trained(settings: LocalSettings, tensors: Tensors) -> tuple[dict[str, torch.Tensor], Update]:
    split = small_split(n_users=9, n_items=N_ITEMS)
    state = cohort.start_state(split.users, settings, tensors[VIEWS], seed=1)
    state, update = cohort.train(state, tensors, people(split), settings, seed=1, round=2)
    return state.parameters, update


def test_power_0_is_bit_equal_to_none_and_another_power_is_not() -> None:
    plain = {name: value for name, value in sent().items() if name != COHESION}
    wanted, update = trained(LocalSettings(), plain)
    found, other = trained(LocalSettings(prior=0.0), sent())
    for name, value in {**wanted, **update.gradients}.items():
        assert torch.equal({**found, **other.gradients}[name], value), name
    moved, third = trained(LocalSettings(prior=0.5), sent())
    assert not torch.equal(third.gradients[VIEWS], update.gradients[VIEWS])
    assert third.gradients.keys() == update.gradients.keys(), "nobody learns the mean"
    assert moved.keys() == wanted.keys()


def test_no_gradient_goes_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same gradients as with the prior given as a constant."""
    _, wanted = trained(PRIOR.model_copy(update={"local_epochs": 1}), sent())
    constant = {}

    def once(known: Histories, views: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        assert views.requires_grad
        return constant.setdefault("prior", prior(known, views, mean).clone())

    monkeypatch.setattr(cohort, "prior", once)
    _, found = trained(PRIOR.model_copy(update={"local_epochs": 1}), sent())
    assert torch.equal(found.gradients[VIEWS], wanted.gradients[VIEWS])
    assert not constant["prior"].requires_grad


def test_a_cohort_is_its_people_one_by_one_also_where_gradients_are_told_apart() -> None:
    split, settings = small_split(n_users=7, n_items=N_ITEMS), PRIOR
    tensors = {name: value.float() for name, value in sent().items()}
    method = CohortTraining(tensors, settings, seed=1, round=3)
    start = cohort.start_state(split.users, settings, tensors[VIEWS], seed=1)
    _, whole = method.together(start, split)
    alone = sum(
        (method.together(start.take(torch.tensor([u])), split.take(np.array([u])))[1] for u in range(7)), Update()
    )
    _, clipped = Transforms([Clip(1e6)]).train(method, start, split, Origin(1, 3))
    for name, value in whole.gradients.items():
        torch.testing.assert_close(alone.gradients[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clipped.gradients[name], value, rtol=1e-4, atol=1e-5)


def test_what_is_held_out_is_never_read() -> None:
    split, views = small_split(n_users=9, n_items=N_ITEMS), drawn(N_VIEWS, N_ITEMS, DIM).float()
    other = replace(split, validation=shuffled(split.validation), test=shuffled(split.test))
    assert torch.equal(*(_cohesion(one, views, device_settings()).counts[COHESION] for one in (split, other)))


def test_one_persons_device_withholds_what_would_be_theirs_alone() -> None:
    views = drawn(N_VIEWS, N_ITEMS, DIM).float()
    for n_users, there in ((1, False), (2, True)):
        update = _cohesion(small_split(n_users, N_ITEMS), views, device_settings())
        assert (COHESION in _without_one(update).counts) == there


@pytest.mark.parametrize("recency", [0.0, 1.0])
def test_a_run_with_it_is_the_same_on_any_nodes_under_masks_and_resumed(tmp_path: Path, recency: float) -> None:
    changes = {"server": SGD, "local": {"prior": 1.0, "recency": recency}}
    for nodes in (1, 2, 3):
        inline.execute(small_job(tmp_path, f"nodes-{nodes}", nodes, **changes), silent)
    inline.execute(small_job(tmp_path, "masked", 4, **changes, privacy={"secure": True}), silent)
    inline.execute(small_job(tmp_path, "parts", 3, rounds=2, **changes), silent)
    inline.execute(small_job(tmp_path, "parts", 3, resume=True, **changes), silent)
    for name in ("nodes-2", "nodes-3", "masked"):
        assert_same_run(tmp_path / "nodes-1", tmp_path / name, 2e-4 if name == "masked" else TOLERANCE)
    assert_bitwise(tmp_path / "nodes-3", tmp_path / "parts")
    assert float(last_checkpoint(tmp_path / "parts")[SPREAD].max()) > 0


def test_people_who_never_trained_are_weighed_by_it_and_power_0_tells_nobody(tmp_path: Path) -> None:
    for name, power in (("with", 1.0), ("without", 0.0)):
        local = {"prior": power, "learning_rate": 0.01}
        job = small_job(tmp_path, name, 2, planted=True, local=local)
        inline.execute(job, silent)
        personal = Personal.open(job.devices[0])
        assert (COHESION in personal.sent) == (SPREAD in last_checkpoint(job.run_dir)) == (power > 0)
        for path in job.devices[0].glob("private/*/block-*/*"):
            path.unlink()
        fresh = Personal.open(job.devices[0])
        weights = torch.tensor(list(fresh.weights().values()))
        assert bool((weights.std(1) > 1e-3).any()) == (power > 0), "all views count alike for who never trained"
        if power:
            known = histories(fresh.people()[0][0])
            wanted = torch.softmax(prior(known, fresh.sent[VIEWS], fresh.sent[COHESION]), 1)
            torch.testing.assert_close(weights, wanted)
            user = next(iter(fresh.weights()))
            assert fresh.based_on(user) == "history"
            assert fresh.weights_of(user) == pytest.approx(dict(zip(fresh.task.views, wanted[0].tolist(), strict=True)))


@pytest.mark.integration
def test_ray_equals_inline_with_it(tmp_path: Path) -> None:
    changes = {"server": SGD, "local": {"prior": 1.0}}
    inline.execute(small_job(tmp_path, "inline", 3, **changes), silent)
    simulate.execute(small_job(tmp_path, "ray", 3, **changes), silent)
    assert_same_run(tmp_path / "inline", tmp_path / "ray", TOLERANCE)
