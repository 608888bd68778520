"""The person's commands, as typed: what they print and write, and that bad input changes no file."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.client.people.events import People
from tessera.common.errors import TesseraError
from tessera.deploy.cli.main import app
from tessera.deploy.executors import inline
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_dataset, small_job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    inline.execute(small_job(folder, "run", 2), silent)
    return folder / "run" / "devices"


def run(*words: object, fails: bool = False) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert (result.exit_code != 0) == fails, result.output
    assert not fails or isinstance(result.exception, TesseraError), "the command prints its message, and no traceback"
    return str(result.exception) if fails else result.output


def test_a_persons_life_by_commands(trained: Path, tmp_path: Path) -> None:
    one, other = ("--data-dir", trained / "node-0"), ("--data-dir", trained / "node-1")
    run("device", "add-person", "zoe", *one)
    assert json.loads(run("device", "people", "--json", *one))[-1] == {"user": "zoe", "events": 0}
    assert "no event yet" in run("recommend", "--user", "zoe", *one, fails=True)
    had = json.loads(run("device", "add-event", "zoe", "title I004", "--json", *one))
    assert had["item"] == "i004"
    (tmp_path / "more.csv").write_text("item\ni005\ni006\n")
    assert (
        json.loads(run("device", "import-events", tmp_path / "more.csv", "--user", "zoe", "--json", *one))["added"] == 2
    )
    run("device", "correct", "zoe", "i005", "--instead", "i007", *one)
    shown = json.loads(run("device", "show", "zoe", "--json", *one))
    assert {event["item"] for event in shown["events"]} == {"i004", "i006", "i007"}
    assert shown["runs"][0]["trained"] is False
    assert sum(shown["runs"][0]["reliance"].values()) == pytest.approx(1)
    told = run("recommend", "--user", "zoe", *one)
    run("device", "export", "zoe", tmp_path / "zoe.zip", *one)
    assert "zoe is on" in run("device", "import", tmp_path / "zoe.zip", *other)
    assert run("recommend", "--user", "zoe", *other) == told
    assert "Title i004" in run("device", "show", "zoe", *other)
    run("device", "forget", "zoe", "--yes", "--json", *one)
    assert "zoe" not in run("device", "people", *one)
    assert "zoe" in run("device", "people", *other)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("add-person", "person-0"), "is on this device already"),
        (("add-event", "nobody", "i001"), "user 'nobody' is not on this device"),
        (("add-event", "person-0", "title"), "may be"),
        (("correct", "person-0", "i999"), "no item has the id 'i999'"),
        (("import-events", "none.csv"), "none.csv does not exist"),
        (("show", "nobody"), "user 'nobody' is not on this device"),
        (("export", "nobody", "nobody.zip"), "user 'nobody' is not on this device"),
        (("import", "none.zip"), "none.zip does not exist"),
        (("forget", "nobody", "--yes"), "user 'nobody' is not on this device"),
        (("refresh", "nobody"), "user 'nobody' is not on this device"),
        (("encrypt",), "pass --passphrase or --key-file FILE"),
        (("encrypt", "--key-file", "."), "key file . cannot be read: Is a directory"),
        (("decrypt",), "is not encrypted"),
        (("policy", "set", "sekure=off"), "the nearest known one is 'secure'"),
        (("keys", "drop", "SHA256:none"), "was never seen here"),
    ],
)
def test_bad_input_is_one_clear_line_and_changes_nothing(
    words: tuple[str, ...], told: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = trained / "node-0"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    users = People(folder).users()
    said = run("device", *words, "--data-dir", folder, fails=True)
    assert told in " ".join(said.split())
    assert {path: path.read_bytes() for path in before} == before
    assert People(folder).users() == users
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("people",),
        ("status",),
        ("show", "person-0"),
        ("add-person", "zoe"),
        ("add-event", "person-0", "i004"),
        ("import-events", "more.csv", "--user", "person-0"),
        ("correct", "person-0", "i004"),
        ("prefer", "person-0", "--hide", "i004"),
        ("refresh", "person-0"),
        ("export", "person-0", "out.zip"),
        ("import", "in.zip"),
        ("forget", "person-0", "--yes"),
        ("encrypt", "--key-file", "key"),
        ("ledger",),
        ("policy", "set", "people=1"),
    ],
    ids=lambda words: words[0],
)
def test_a_dataset_is_no_device_and_stays_as_it_was(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypting it, say, would lock everybody out of the data."""
    dataset, here = small_dataset(tmp_path / "data"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "more.csv").write_text("item\ni005\n")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    said = run("device", *words, "--data-dir", dataset, fails=True)
    assert "is no device's folder but a dataset's: tessera data partition shares its people out" in " ".join(
        said.split()
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
