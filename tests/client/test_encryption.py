"""A device's folder encrypted at rest: nothing private is found in it, and everything works as before."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tessera
from tessera.client.people.events import People
from tessera.common.utils.atomic_files import digest, read_tensors
from tessera.common.utils.encryption.seam import KEY_FILE, MAGIC, NOTE, PASSPHRASE
from tessera.common.utils.encryption.vault import lock
from tessera.deploy.executors import inline
from tests.client.test_people import device, job, lists, states
from tests.deploy.test_executors import silent
from tests.support.metrics import read_metrics

PUBLIC = {"items.parquet", NOTE, ".people.lock", ".lock", "node.key.pub"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    inline.execute(job(folder), silent)
    return folder


@pytest.fixture
def world(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in (KEY_FILE, PASSPHRASE):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(trained, tmp_path / "world")
    yield tmp_path / "world"
    for folder in (tmp_path / "world" / "run" / "devices").iterdir():
        lock(folder)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    return tmp_path / "key"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_file_tells_who_is_there_what_they_had_or_what_was_learnt(world: Path, key: Path, tmp_path: Path) -> None:
    folder = device(world)
    opened = tessera.Device.open(folder)
    policy = opened.policy
    (folder / "ledger.jsonl").write_text(
        '{"time": 1.0, "run": "r", "catalogue": "c", "round": 1, "kind": "train"}\n{"cut'
    )
    people, before = opened.people(), (lists(folder), states(folder), opened.ledger())
    secrets = [one.user.encode() for one in people] + [b'"run"', b"max_asks_per_day", b"PAR1"]
    secrets += [value.numpy().tobytes() for own in before[1].values() for value in own.values() if value.numel() > 4]
    number = opened.encrypt(key_file=key)
    assert (number, opened.encryption) == (
        sum(name not in PUBLIC for name in contents(folder)) - public(folder),
        "key-file",
    )
    assert (lists(folder), opened.ledger(), opened.policy) == (before[0], before[2], policy)
    opened.add_event(people[0].user, opened.recommend(people[0].user)[0].item)
    opened.add_person("zoe")
    opened.export(people[1].user, tmp_path / "person.zip")
    for name, content in contents(folder).items():
        if name.startswith(("views/", "published/")) or name in PUBLIC:
            assert not content.startswith(MAGIC), name
            continue
        assert content.startswith((MAGIC, b"sealed:")), name
        assert not [secret for secret in [*secrets, b"zoe"] if secret in content], name
    there = tessera.Device.open(device(world, 2))
    there.import_(tmp_path / "person.zip")
    assert lists(there.folder)[people[1].user] == before[0][people[1].user], "an export is in clear"
    opened.forget("zoe")
    opened.correct(people[0].user, opened.events(people[0].user)[-1].item)
    assert opened.decrypt() == number + 1  # and people.json
    assert lists(folder) == before[0]
    after = states(folder)
    assert all(torch.equal(after[user][name], value) for user, own in before[1].items() for name, value in own.items())
    assert not any(content.startswith((MAGIC, b"sealed:")) for content in contents(folder).values())


def public(folder: Path) -> int:
    return sum(name.startswith("views/") for name in contents(folder))


def test_a_device_trains_while_it_is_encrypted_and_nothing_else_comes_of_it(
    world: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = tmp_path / "clear"
    shutil.copytree(world, clear)
    tessera.Device.open(device(world)).encrypt(key_file=key)
    monkeypatch.setenv(KEY_FILE, str(key))
    for folder in (world, clear):
        inline.execute(job(folder, resume=True, rounds=6), silent)
    told = [
        [{name: value for name, value in line.items() if name != "seconds"} for line in read_metrics(folder / "run")]
        for folder in (world, clear)
    ]
    assert told[0] == told[1]
    assert lists(device(world)) == lists(device(clear))
    ours, theirs = (states(device(folder)) for folder in (world, clear))
    assert all(torch.equal(ours[user][name], value) for user, own in theirs.items() for name, value in own.items())
    for path in device(world).rglob("private/*/block-*/*"):
        assert path.read_bytes().startswith(MAGIC)
    for path in (device(world) / "views").iterdir():
        read_tensors(path)


def test_without_the_key_one_line_says_so_and_nothing_changes(
    world: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = device(world), tmp_path / "other"
    other.write_bytes(bytes(32))
    user = People(folder).users()[0]
    tessera.Device.open(folder).encrypt(passphrase="a long passphrase")
    lock(folder)
    before = {name: digest(content) for name, content in contents(folder).items()}
    with pytest.raises(tessera.Locked, match="encrypted with a passphrase: open it by TESSERA_PASSPHRASE"):
        tessera.Device.open(folder)
    with pytest.raises(tessera.Locked, match="that passphrase is not the one"):
        tessera.Device.open(folder, passphrase="another passphrase")
    with pytest.raises(tessera.Locked, match="encrypted with a passphrase, and a key-file was given"):
        tessera.Device.open(folder, key_file=other)
    with pytest.raises(tessera.Locked):
        People(folder).add_event(user, "i001")
    with pytest.raises(tessera.ConfigError, match="a passphrase has at least 8 characters"):
        tessera.Device.open(folder, passphrase="short")
    (tmp_path / "bad").write_bytes(b"short")
    with pytest.raises(tessera.ConfigError, match="holds 5 bytes"):
        tessera.Device.open(folder, key_file=tmp_path / "bad")
    with pytest.raises(tessera.DataError, match="is not encrypted"):
        tessera.Device.open(device(world, 1), key_file=key)
    monkeypatch.setenv(PASSPHRASE, "a long passphrase")
    with pytest.raises(tessera.ConfigError, match="is encrypted already"):
        tessera.Device.open(folder).encrypt(passphrase="a long passphrase")
    assert {name: digest(content) for name, content in contents(folder).items()} == before
    assert tessera.Device.open(folder).recommend(user)


def test_a_sealed_file_does_not_open_in_the_place_of_another_nor_damaged(world: Path, key: Path) -> None:
    folder = device(world)
    tessera.Device.open(folder).encrypt(key_file=key)
    path, newer = sorted((folder / "private").rglob("block-0000/*.safetensors"))[-2:]
    whole = newer.read_bytes()
    for content in (path.read_bytes(), whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]):
        newer.write_bytes(content)
        states(folder)
        assert newer.with_name(newer.name + ".corrupt").exists(), "set aside, as in clear"
        newer.with_name(newer.name + ".corrupt").unlink()
