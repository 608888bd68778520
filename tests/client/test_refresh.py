"""A person's state is taught what they did since, between rounds: for their own list alone, and until the next round counts."""

import shutil
from pathlib import Path

import pytest
import torch

import tessera
from tessera.client.private_state import Store
from tessera.client.recommend import Personal
from tessera.client.run_note import RunNote
from tessera.deploy.executors import inline
from tests.client.test_people import device, job, lists, states
from tests.deploy.test_executors import silent
from tests.support.metrics import read_metrics

WHO = "person-0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    inline.execute(job(folder), silent)
    return folder


@pytest.fixture
def world(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "world")
    return tmp_path / "world"


def left(folder: Path) -> list[Path]:
    return list(folder.rglob("refreshed/*"))


def test_a_refresh_raises_what_was_added_and_touches_nobody_else(world: Path) -> None:
    folder = device(world)
    opened = tessera.Device.open(folder)
    before, learnt = lists(folder), states(folder)
    item = opened.recommend(WHO, 30)[-1].item
    opened.add_event(WHO, item)
    known = opened.explain(WHO, item).score
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    opened.refresh(WHO, steps=30)
    assert opened.explain(WHO, item).score > known, "at once, in a device that was open already"
    (new,) = {path for path in folder.rglob("*") if path.is_file()} - files.keys() - {folder / "secret"}
    assert (new.parent.name, new.stat().st_mode & 0o777) == ("refreshed", 0o600)
    assert {path: path.read_bytes() for path in files} == files
    after = lists(folder)
    assert after.pop(WHO) != before.pop(WHO)
    assert after == before
    assert all(torch.equal(states(folder)[WHO][name], value) for name, value in learnt[WHO].items())
    with pytest.raises(tessera.DataError, match="steps is 0"):
        opened.refresh(WHO, steps=0)
    opened.add_person("zoe")
    with pytest.raises(tessera.DataError, match="'zoe' has no event yet"):
        opened.refresh("zoe")
    opened.add_event("zoe", "i001")
    assert opened.recommend("zoe").based_on == "history"
    opened.refresh("zoe")
    assert opened.recommend("zoe").based_on == "training", "by the device alone"


def test_a_run_goes_on_as_if_nobody_had_been_refreshed(world: Path, tmp_path: Path) -> None:
    """Until it shows another round, the refreshed state counts; then it is dropped."""
    other = tmp_path / "other"
    shutil.copytree(world, other)
    folder = device(world)
    plain = tessera.Device.open(folder).recommend(WHO)
    tessera.Device.open(folder).refresh(WHO)
    fresh, (note,) = tessera.Device.open(folder).recommend(WHO), folder.glob("private/*/run.json")
    assert fresh != plain
    for place in (world, other):
        inline.execute(job(place, resume=True, rounds=6), silent)
    assert _told(world) == _told(other)
    ours, theirs = (states(device(place)) for place in (world, other))
    assert all(torch.equal(ours[user][name], value) for user, own in theirs.items() for name, value in own.items())
    superseded = RunNote.read(note).shown.round != fresh.round
    now, without = (tessera.Device.open(device(place)).recommend(WHO) for place in (world, other))
    assert (now == without) if superseded else (now.items == fresh.items)
    assert len(left(folder)) == (0 if superseded else 1)
    (store,) = (Store(path.parent) for path in folder.glob("private/*/run.json"))
    store.tidy(6, (6,))
    assert Personal.open(folder).recommend(WHO, 5)


def _told(world: Path) -> list[dict[str, object]]:
    lines = read_metrics(world / "run")
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_it_moves_along_and_goes_with_what_it_was_learnt_from(world: Path, tmp_path: Path) -> None:
    here, there = (tessera.Device.open(device(world, node)) for node in (0, 2))
    here.refresh(WHO)
    told = here.recommend(WHO)
    here.export(WHO, tmp_path / "person.zip")
    there.import_(tmp_path / "person.zip")
    assert there.recommend(WHO) == told
    there.correct(WHO, there.events(WHO)[0].item)
    assert not left(there.folder), "it had learnt from what was taken back"
    here.forget(WHO)
    assert not left(here.folder)


def test_a_damaged_refresh_counts_for_nothing(world: Path) -> None:
    opened = tessera.Device.open(device(world))
    plain = opened.recommend(WHO)
    opened.refresh(WHO)
    (path,) = left(opened.folder)
    path.write_bytes(path.read_bytes()[:-1])
    assert tessera.Device.open(opened.folder).recommend(WHO) == plain
