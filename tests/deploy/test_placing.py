"""Runs that go on over more items and place these by who has them: `views.fold_in`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.client.owner.past_sums import HERE, PastSums, Whose, write_sums
from tessera.client.owner.policy import Policy, write_policy
from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import Interactions
from tessera.common.errors import ConfigError
from tessera.deploy.executors.run import make_job, run_job
from tessera.server.live import placing
from tests.deploy.test_continue import kill_in_first_round, settings, tensors, trained
from tests.support.catalogues import planted_interactions, small_catalogue
from tests.support.metrics import read_metrics

N, MORE = 60, 6
VIEWS: dict[str, Any] = {"dim": 8, "id_dim": 8, "operators": [], "spectral_rounds": 3, "fold_in": True}
PLACED = ("model/history", "model/embedding")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two kinds of people, each with items of their own half; later six more items, one kind's but for the last, nobody's."""
    folder = tmp_path_factory.mktemp("data")
    catalogue, people = small_catalogue(N, seed=1), planted_interactions(40, N)
    catalogue.save(folder / "before")
    people.save(folder / "before")
    new = small_catalogue(N + MORE, seed=2)
    features = {
        name: Features(
            np.concatenate([one.values, new.features[name].values[N:]]),
            np.concatenate([one.present, new.features[name].present[N:]]),
            one.encoder,
            one.own_standard(),
        )
        for name, one in catalogue.features.items()
    }
    ids = (*catalogue.items, *(f"new-{n}" for n in range(MORE)))
    Catalogue(ids, ids, ("",) * len(ids), ("",) * len(ids), features).save(folder / "later")
    with_new(people).save(folder / "later")
    for name in ("before", "later"):
        (folder / name / "dataset.json").write_text("{}")
    return folder / "before", folder / "later"


def with_new(people: Interactions) -> Interactions:
    """The same, and before all else the even-numbered people have had three of five new items, each."""
    items = []
    for user in range(len(people.users)):
        more = (N + (user // 2 + np.arange(3)) % 5) if user % 2 == 0 else np.zeros(0, dtype=np.int64)
        items.append(np.concatenate([more, people.items[people.offsets[user] : people.offsets[user + 1]]]))
    lengths = [len(one) for one in items]
    times = np.concatenate([np.arange(length) for length in lengths])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return replace(people, items=np.concatenate(items), timestamps=times, offsets=offsets, n_items=N + MORE)


def begun(later: Path, first: Path, to: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The tensors with which a run begins that goes on from `first`."""
    local = changes.pop("local", {"learning_rate": 0.01})
    job = make_job(settings(to.name, rounds=1, local=local, **changes), later, to, False, False, first)
    run_job(job, "inline", lambda line: None)
    return tensors(to, 8)


def test_new_items_begin_where_those_are_that_the_same_people_have(datasets: tuple[Path, Path], tmp_path: Path) -> None:
    """And rows of before as they were, with one node, with seven, and under masks; without people, where contents say."""
    before, later = datasets
    moved = tmp_path / "before"
    moved.symlink_to(before)
    first = trained(moved, "first", rounds=8, views=VIEWS, evaluation={"every": 8})
    by_content = begun(later, first, tmp_path / "content", views=VIEWS | {"fold_in": False})
    folded = begun(later, first, tmp_path / "one", views=VIEWS, nodes=1)
    several = begun(later, first, tmp_path / "seven", views=VIEWS, nodes=7)
    masked = begun(later, first, tmp_path / "masked", views=VIEWS, nodes=7, privacy={"secure": True})
    last = tensors(first, 8)
    for name in PLACED:
        assert torch.equal(folded[name][:N], last[name])
        torch.testing.assert_close(several[name], folded[name], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(masked[name], folded[name], rtol=1e-3, atol=1e-3)
        assert torch.equal(folded[name][-1], by_content[name][-1])
        rows, halves = folded[name][N : N + 5], (last[name][: N // 2].mean(0), last[name][N // 2 :].mean(0))
        alike = torch.nn.functional.cosine_similarity(rows[:, None], torch.stack(halves), dim=2)
        assert bool((alike[:, 0] > alike[:, 1] + 0.3).all()), alike


def test_a_resumed_run_does_not_ask_again(
    datasets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, later = datasets
    (tmp_path / "before").symlink_to(before)
    first = trained(tmp_path / "before", "first", rounds=8, views=VIEWS, evaluation={"every": 8})
    whole = trained_on(later, first, tmp_path / "whole")
    job = make_job(settings("cut", rounds=2, views=VIEWS), later, tmp_path / "cut", False, False, first)
    kill_in_first_round(job)
    asked = []
    monkeypatch.setattr(placing, "_place", lambda *arguments: asked.append(arguments))
    run_job(make_job(job.settings, later, job.run_dir, True, False), "inline", lambda line: None)
    assert not asked
    for name, value in tensors(whole, 10).items():
        assert torch.equal(tensors(job.run_dir, 10)[name], value), name
    assert [line["round"] for line in read_metrics(job.run_dir) if line["kind"] == "evaluation"] == [8, 10]


def trained_on(later: Path, first: Path, to: Path) -> Path:
    job = make_job(settings(to.name, rounds=2, views=VIEWS), later, to, False, False, first)
    run_job(job, "inline", lambda line: None)
    return to


def test_noise_refuses_a_sum_that_it_does_not_cover() -> None:
    with pytest.raises(ConfigError, match=r"does not noise the sum that places items: set views\.fold_in to false"):
        settings("x", views={"dim": 8, "fold_in": True}, privacy={"clip": 1.0, "noise_multiplier": 1.0})


def test_what_devices_hold_back_is_done_without(
    datasets: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A device that was in such a sum of one person fewer is in none now: contents place the items, and the run goes on."""
    before, later = datasets
    (tmp_path / "before").symlink_to(before)
    first = trained(tmp_path / "before", "first", rounds=8, views=VIEWS, evaluation={"every": 8})
    by_content = begun(later, first, tmp_path / "content", views=VIEWS | {"fold_in": False}, nodes=1)
    job = make_job(settings("held", rounds=1, views=VIEWS, nodes=1), later, tmp_path / "held", False, False, first)
    (device,) = job.devices
    write_policy(device, Policy(people=5, people_per_column=0))
    write_sums(device, PastSums().having_read("power", "", Whose(devices={HERE: 39}, here="as of then")))
    run_job(job, "inline", lambda line: None)
    assert "new items are placed by their contents alone" in caplog.text
    for name in PLACED:
        assert torch.equal(tensors(job.run_dir, 8)[name], by_content[name])
    assert (job.run_dir / "checkpoints" / "round-000009.safetensors").exists()
