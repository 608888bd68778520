"""Runs that continue others: with nothing changed, with a catalogue that has grown, with other people; and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.client.private_state import Store
from tessera.client.recommend import Personal
from tessera.common.data.catalogue import Catalogue, Features, load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.errors import ConfigError, RunError
from tessera.common.metrics.records import read_result
from tessera.common.utils.atomic_files import read_json, read_tensors
from tessera.deploy.executors import inline
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.job import Job
from tessera.server.run_folder import RunFolder
from tessera.server.strategies import make_strategy
from tessera.testing.data import small_catalogue
from tests.support.catalogues import small_dataset, small_interactions, small_settings
from tests.support.metrics import read_metrics


def settings(name: str, **changes: Any) -> Any:
    federation = {"nodes": changes.pop("nodes", 2), "checkpoint_every": 1}
    return small_settings(**{"name": name, "federation": federation, **changes})


def trained(dataset: Path, name: str, continues: Path | None = None, **changes: Any) -> Path:
    """Train in the folder `name` beside the dataset."""
    job = make_job(settings(name, **changes), dataset, dataset.parent / name, False, False, continues)
    run_job(job, "inline", lambda line: None)
    return job.run_dir


def tensors(run: Path, round: int) -> dict[str, torch.Tensor]:
    return read_tensors(RunFolder.look(run).checkpoint(round))[0]


def grown(dataset: Path, more: int, retired: tuple[int, ...] = ()) -> Path:
    """The dataset with more items and people behind those that it has."""
    old, own = load_catalogue(dataset), load_interactions(dataset, len(load_catalogue(dataset, modalities=False)))
    new = small_catalogue(len(old) + more, seed=5)
    features = {
        name: Features(
            np.concatenate([one.values, new.features[name].values[len(old) :]]),
            np.concatenate([one.present, new.features[name].present[len(old) :]]),
            one.encoder,
            one.own_standard(),
        )
        for name, one in old.features.items()
    }
    ids = (*old.items, *(f"new-{n}" for n in range(more)))
    marks = np.isin(np.arange(len(ids)), retired)
    out = dataset.parent / "grown"
    Catalogue(ids, ids, ("",) * len(ids), ("",) * len(ids), features, marks).save(out)
    some = own.take(np.arange(len(own.users)))
    replace(some, n_items=len(ids)).save(out)
    (out / "dataset.json").write_text("{}")
    return out


def states(run: Path) -> Mapping[str, dict[str, torch.Tensor]]:
    """Everybody's newest parameters and moments, by person."""
    found = {}
    for device in sorted((run / "devices").glob("node-*")):
        for private in (device / "private").iterdir():
            if private.name != RunFolder.look(run).run:
                continue
            users = load_interactions(device, len(load_catalogue(device, modalities=False))).users
            state = Store(private).find(users, 10**5, 0)
            assert state is not None
            for row, user in enumerate(state.users):
                found[user] = {name: value[row] for name, value in (state.parameters | state.optimizer).items()}
    return found


def kill_in_first_round(job: Job) -> None:
    """Begin a run, and let it die when its first round is over."""

    class Killed(BaseException):
        pass

    def listen(line: Any) -> None:
        if line.kind == "round":
            raise Killed

    with pytest.raises(Killed):
        inline.execute(job, listen)


@pytest.mark.parametrize(("backbone", "nodes"), [("history", 3), ("fedrap", 2)])
def test_a_run_that_is_continued_with_nothing_changed_is_the_run_that_never_stopped(
    tmp_path: Path, backbone: str, nodes: int
) -> None:
    """Bit for bit on the same nodes, and on others to what the order of sums rounds off."""
    near: dict[str, Any] = {"rtol": 0, "atol": 0} if nodes == 2 else {}
    dataset, local = small_dataset(tmp_path / "small"), {"backbone": backbone, "learning_rate": 0.01}
    whole = trained(dataset, "whole", rounds=6, local=local)
    first = trained(dataset, "first", rounds=3, local=local, evaluation={"every": 3})
    second = trained(dataset, "second", first, rounds=3, local=local, nodes=nodes)
    end, same = tensors(whole, 6), tensors(second, 6)
    assert end.keys() == same.keys()
    for name, value in end.items():
        torch.testing.assert_close(same[name], value, msg=name, **near)
    one, other = states(whole), states(second)
    assert one.keys() == other.keys()
    for user, own in one.items():
        for name, value in own.items():
            torch.testing.assert_close(other[user][name], value, msg=f"{user} {name}", **near)
    evaluated = [line["round"] for line in read_metrics(second) if line["kind"] == "evaluation"]
    assert evaluated == [3, 4, 6]
    result = read_result(second)
    assert (result.first, result.rounds, result.trained) == (3, 6, 3)
    assert read_json(second / "origin.json")["continues"] == [[RunFolder.look(first).run, 3]]


@pytest.mark.parametrize("backbone", ["history", "fedrap", "pfedrec", "fedncf", "fcf", "fedavg"])
def test_a_catalogue_grows_by_rows(tmp_path: Path, backbone: str) -> None:
    """Rows of before are bit-equal and keep their moments; new ones start from their contents, with none."""
    dataset, local = small_dataset(tmp_path / "small"), {"backbone": backbone, "learning_rate": 0.01}
    first = trained(dataset, "first", rounds=2, local=local)
    later = grown(dataset, 7, retired=(3,))
    second = trained(later, "second", first, rounds=1, local=local)
    before, after = tensors(first, 2), tensors(second, 2)
    assert before.keys() == after.keys()
    n_grown = 0
    for name, value in before.items():
        if value.shape == after[name].shape:
            torch.testing.assert_close(after[name], value, rtol=0, atol=0)
            continue
        n_grown += 1
        torch.testing.assert_close(after[name][:40], value, rtol=0, atol=0)
        rows = after[name][40:]
        assert len(rows) == 7
        if name.startswith("optimizer/"):
            assert not rows.any()
        else:
            norms = rows.norm(dim=1)
            torch.testing.assert_close(norms, value.norm(dim=1).mean().expand(7), msg=name)
    assert n_grown == (6 if backbone == "history" else 3)
    one, other = states(first), states(second)
    assert one.keys() == other.keys()
    for user, own in one.items():
        for name, value in own.items():
            assert other[user][name].shape in (value.shape, (47, *value.shape[1:]))
    moved = tensors(second, 3)
    assert moved["model/embedding"].shape[0] == 47


def test_people_keep_what_they_were_whatever_items_come(tmp_path: Path) -> None:
    """Before it has trained, a continued run's private states are those that the run before it left, wherever people are."""
    dataset = small_dataset(tmp_path / "small")
    first = trained(dataset, "first", rounds=2, nodes=2)
    job = make_job(settings("second", nodes=3), grown(dataset, 5), tmp_path / "second", False, False, first)
    before, run = states(first), RunFolder.look(first).run
    for device in job.devices:
        state = Store(device / "private" / run).find(tuple(before), 3, 0)
        assert state is not None
        assert set(state.users) == set(load_interactions(device, 45).users)
        for row, user in enumerate(state.users):
            for name, value in (state.parameters | state.optimizer).items():
                assert torch.equal(value[row], before[user][name])


def test_people_are_recommended_to_by_what_they_were(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "small")
    views = {"dim": 8, "id_dim": 8, "operators": []}
    first = trained(dataset, "first", rounds=2, nodes=1, views=views)
    slow = {"local": {"learning_rate": 1e-7}, "server": {"learning_rate": 1e-9}}
    second = trained(grown(dataset, 5), "second", first, rounds=2, nodes=1, views=views, **slow)
    old, new = Personal.open(first / "devices/node-0"), Personal.open(second / "devices/node-0")
    for user, weights in old.weights().items():
        assert new.based_on(user) == "training"
        assert max(weights) > 0.334
        assert new.weights()[user] == pytest.approx(weights, abs=1e-4)


def test_the_first_rounds_can_be_done_again(tmp_path: Path) -> None:
    """A continued run that was killed before its first checkpoint begins again where it began."""
    dataset = small_dataset(tmp_path / "small")
    first, later = trained(dataset, "first", rounds=2), grown(dataset, 5)
    whole = trained(later, "whole", first, rounds=2)
    job = make_job(settings("cut", rounds=2), later, tmp_path / "cut", False, False, first)
    kill_in_first_round(job)
    run_job(make_job(settings("cut", rounds=2), later, tmp_path / "cut", True, False), "inline", lambda line: None)
    end, same = tensors(whole, 4), tensors(tmp_path / "cut", 4)
    for name, value in end.items():
        torch.testing.assert_close(same[name], value, rtol=0, atol=0)
    kinds = [line["kind"] for line in read_metrics(tmp_path / "cut")]
    assert kinds.count("item_statistics") == 1


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "small")
    first = trained(dataset, "first", rounds=1)

    def begin(name: str = "second", at: Path = dataset, source: Path = first, **changes: Any) -> Job:
        return make_job(settings(name, **changes), at, tmp_path / name, False, False, source)

    with pytest.raises(
        ConfigError, match=r"first was run with views.dim 8, these settings say 16: .* the same views.dim"
    ):
        begin(views={"dim": 16, "id_dim": 8})
    with pytest.raises(ConfigError, match=r"local.backbone name='history'.* say name='fedavg'"):
        begin(local={"backbone": "fedavg"})
    with pytest.raises(ConfigError, match=r"privacy.noise_multiplier 0, now 1"):
        begin(privacy={"clip": 1.0, "noise_multiplier": 1.0})
    with pytest.raises(RunError, match="cannot continue itself"):
        begin("first")
    with pytest.raises(RunError, match="nothing-here holds no run to continue"):
        begin(source=tmp_path / "nothing-here")
    other = tmp_path / "other"
    load_catalogue(dataset).take(np.arange(40)[::-1]).save(other)
    small_interactions(14, 40).save(other)
    with pytest.raises(
        RunError, match=r"run on 40 items, with which this catalogue of 40 does not begin: .*data catalogue"
    ):
        begin(at=other)
    for path in (first / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="first never completed a round"):
        begin()
    assert not (tmp_path / "second").exists()


def test_a_run_is_resumed_with_its_own_catalogue(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "small")
    first = trained(dataset, "first", rounds=1)
    with pytest.raises(RunError, match=r"another version of the catalogue \(40 items, now 45\): .* --continue"):
        run_job(
            make_job(settings("first", rounds=2), grown(dataset, 5), first, True, False), "inline", lambda line: None
        )


def test_runs_of_before_catalogues_had_versions_are_continued(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "small")
    first = trained(dataset, "first", rounds=1)
    (first / "origin.json").unlink()
    second = trained(grown(dataset, 5), "second", first, rounds=1)
    assert tensors(second, 2)["model/embedding"].shape[0] == 45


def test_items_without_content_start_from_the_mean_of_the_others(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "small")
    first, later = trained(dataset, "first", rounds=1), grown(dataset, 2)
    catalogue = load_catalogue(later)
    none = {
        name: Features(one.values, one.present & (np.arange(42) < 41), one.encoder, one.standard)
        for name, one in catalogue.features.items()
    }
    strategy = make_strategy(settings("x"), replace(catalogue, features=none), later)
    before = tensors(first, 1)
    strategy.grow(before, 40)
    torch.testing.assert_close(strategy.state()["model/embedding"][41], before["model/embedding"].mean(0))
