"""People of a device as its owner changes them: they come, go, move and are forgotten, and nobody else notices."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.people.archive import export_person, import_person
from tessera.client.people.events import People
from tessera.client.people.forget import forget
from tessera.client.private_state import Store
from tessera.client.recommend import Personal
from tessera.common.errors import DataError
from tessera.deploy.executors import inline
from tessera.deploy.job import Job
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_job
from tests.support.splits import tries

K = 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four rounds on three devices of four or five people, blocks of two."""
    folder = tmp_path_factory.mktemp("trained")
    inline.execute(job(folder), silent)
    return folder


@pytest.fixture
def world(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "world")
    return tmp_path / "world"


def job(folder: Path, resume: bool = False, **changes: object) -> Job:
    return small_job(folder, "run", 3, resume, local={"backbone": "history", "batch_users": 2}, **changes)


def device(world: Path, node: int = 0) -> Path:
    return world / "run" / "devices" / f"node-{node}"


def lists(folder: Path) -> dict[str, object]:
    """Everybody's recommendations with scores and reasons."""
    personal = Personal.open(folder)
    return {user: personal.recommend(user, K) for user in People(folder).users()}


def states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Everybody's newest private state."""
    (store,) = (Store(path) for path in (folder / "private").iterdir())
    found = {}
    for user in People(folder).users():
        kept = store.find((user,), 10**6, 0)
        found[user] = {} if kept is None else kept.parameters | kept.optimizer
    return found


def test_who_comes_or_goes_changes_no_bit_of_anybody_else(world: Path) -> None:
    folder = device(world)
    before, learnt = lists(folder), states(folder)
    people = People(folder)
    gone = people.users()[1]
    people.add_person("zoe")
    people.add_event("zoe", "i003")
    forget(folder, gone)
    assert people.users() == (*(user for user in before if user != gone), "zoe")
    after, kept = lists(folder), states(folder)
    for user in before.keys() - {gone}:
        assert after[user] == before[user]
        assert all(torch.equal(kept[user][name], value) for name, value in learnt[user].items())


def test_a_run_goes_on_with_other_people_in_other_blocks(world: Path) -> None:
    """One is forgotten and one comes; all others keep what they learnt, and the new one learns too."""
    folder = device(world)
    people = People(folder)
    gone, stayed = people.users()[0], people.users()[1:]
    forget(folder, gone)
    people.add_person("zoe")
    for item in range(8):
        people.add_event("zoe", f"i{item:03d}")
    before = states(folder)
    inline.execute(job(world, resume=True, rounds=6), silent)
    after = states(folder)
    assert after.keys() == {*stayed, "zoe"}
    for user in stayed:
        assert after[user]["steps.user"] == before[user]["steps.user"] + 2
    assert after["zoe"]["steps.user"] == 2


def test_a_person_moves_with_all_that_is_known_of_them(world: Path, tmp_path: Path) -> None:
    """On the other device the list is the same bit by bit, and the events, and what the optimiser remembers."""
    here, there = device(world), device(world, 2)
    user = People(here).users()[2]
    told, had, learnt = lists(here)[user], People(here).events(user), states(here)[user]
    archive = tmp_path / "person.zip"
    export_person(here, user, archive)
    assert archive.stat().st_mode & 0o077 == 0
    others = lists(there)
    assert import_person(there, archive).runs
    forget(here, user)
    now = lists(there)
    assert now.pop(user) == told
    assert now == others
    assert People(there).events(user) == had
    assert all(torch.equal(states(there)[user][name], value) for name, value in learnt.items())
    with pytest.raises(DataError, match="is on this device already"):
        import_person(there, archive)
    inline.execute(job(world, resume=True, rounds=6), silent)
    assert states(there)[user]["steps.user"] == learnt["steps.user"] + 2, "it goes on learning there"


def test_forgotten_is_in_no_file(world: Path) -> None:
    folder = device(world)
    people = People(folder)
    user = people.users()[0]
    rows = [value.numpy().tobytes() for value in states(folder)[user].values() if value.numel() > 4]
    damaged = next(folder.rglob("block-0000/*.safetensors"))
    shutil.copyfile(damaged, damaged.with_name("round-000001.safetensors.corrupt"))
    (folder / "node.log").write_text(f"a line\nsomething of {user}\n")
    (folder / "block.tmp").write_text("not ours")
    forget(folder, user)
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert user.encode() not in content, path
            assert not any(row in content for row in rows), path
    with pytest.raises(DataError, match=f"{user}' is not on this device"):
        forget(folder, user)
    for other in people.users():
        forget(folder, other)
    assert people.users() == ()
    assert not list(folder.rglob("*.safetensors")) or not list((folder / "private").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("item\nitem-1", "no column 'user'"),
        ("user,item\nzoe,i001\nzoe,nothing", "line 3: no item has the id 'nothing'"),
        ("user,item\nzoe,title", "line 2: 'title' may be"),
        ("user,item,timestamp\nzoe,i001,noon", "line 2: timestamp 'noon' is no whole number"),
        ("user,item\n,i001", "line 2: no user"),
    ],
)
def test_events_that_cannot_be_are_named_and_nothing_is_added(
    world: Path, tmp_path: Path, rows: str, told: str
) -> None:
    folder = device(world)
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix in (".parquet", ".json")
    }
    path = tmp_path / "events.csv"
    path.write_text(rows)
    with pytest.raises(DataError, match=told):
        People(folder).import_events(path)
    assert {path: path.read_bytes() for path in before} == before


def test_events_come_from_a_file_once_each_and_can_be_corrected(world: Path, tmp_path: Path) -> None:
    people, path = People(device(world)), tmp_path / "events.csv"
    path.write_text("user,item,timestamp\nzoe,i004,30\nzoe,i002,20\nzoe,i004,40\n")
    assert people.import_events(path) == 2
    assert people.import_events(path) == 0
    assert [(event.item, event.time) for event in people.events("zoe")] == [("i002", 20), ("i004", 30)]
    people.correct("zoe", "i002", "i007")
    assert [(event.item, event.time) for event in people.events("zoe")] == [("i007", 20), ("i004", 30)]
    for item in ("i007", "i004"):
        people.correct("zoe", item)
    assert people.events("zoe") == [], "and they are still here"
    with pytest.raises(DataError, match="'zoe' has no event with"):
        people.correct("zoe", "i007")


@pytest.mark.parametrize(
    "written",
    [
        b"\xef\xbb\xbfuser;item;timestamp\nzo\xc3\xab;i004;30\n",
        "user\titem\ttimestamp\nzoë\ti004\t30\n".encode("utf-16"),
    ],
)
def test_events_come_from_files_as_people_have_them(world: Path, tmp_path: Path, written: bytes) -> None:
    """With a byte-order mark, semicolons or tabs, in UTF-16."""
    people, path = People(device(world)), tmp_path / "events.csv"
    path.write_bytes(written)
    assert people.import_events(path) == 1
    assert [(event.item, event.time) for event in people.events("zoë")] == [("i004", 30)]


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"user,item\nzo\xeb,i004\n", "line 2 is not UTF-8"),
        (b"user,item\nzoe,i004,7\n", "line 2 has 3 fields, not 2"),
        (b'user,item\nzoe,12" vinyl\n', "line 2"),
        (b"user,item,item\nzoe,i004,i005\n", "columns 2 and 3 'item'"),
        (b"", "is empty"),
    ],
)
def test_a_file_of_events_that_cannot_be_read_is_named_with_the_line(
    world: Path, tmp_path: Path, written: bytes, told: str
) -> None:
    people, path = People(device(world)), tmp_path / "events.csv"
    path.write_bytes(written)
    with pytest.raises(DataError, match=told):
        people.import_events(path)


def _truncate(content: bytes, at: int) -> bytes:
    return content[: at % len(content)]


def _flip(content: bytes, at: int) -> bytes:
    at %= len(content)
    return content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :]


@tries(80)
@given(change=st.sampled_from([_truncate, _flip]), at=st.integers(0, 1 << 16))
def test_archives_of_strangers_break_nothing(
    change: Callable[[bytes, int], bytes], at: int, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("stranger")
    archive, there = folder / "a.zip", device(trained, 2)
    export_person(device(trained), People(device(trained)).users()[0], archive)
    archive.write_bytes(change(archive.read_bytes(), at))
    shutil.copytree(there, folder / "device")
    before = People(folder / "device").users()
    try:
        import_person(folder / "device", archive)
    except DataError:
        assert People(folder / "device").users() == before
    lists(folder / "device")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"manifest.json": {"version": 2}}, "version"),
        ({"manifest.json": {"user": "x"}}, "somebody else's state"),
        ({"events.csv": "item,timestamp\nnothing,1\n"}, "line 2: item 'nothing' is not in this device's catalogue"),
        ({"events.csv": "item,timestamp\ni001,noon\n"}, "a line is no event"),
        ({"events.csv": None}, "by its SHA-256"),
    ],
)
def test_what_is_wrong_with_an_archive_is_named(world: Path, tmp_path: Path, change: dict, told: str) -> None:
    from tessera.common.utils.atomic_files import digest

    archive, changed = tmp_path / "a.zip", tmp_path / "b.zip"
    export_person(device(world), People(device(world)).users()[0], archive)
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    manifest = json.loads(files["manifest.json"])
    for name, content in change.items():
        if content is None:
            del files[name]
        elif isinstance(content, dict):
            manifest |= content
        else:
            files[name] = content.encode()
            manifest["files"][name] = digest(files[name])
    files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(changed, "w") as new:
        for name, content in files.items():
            new.writestr(name, content)
    with pytest.raises(DataError, match=told):
        import_person(device(world, 2), changed)
