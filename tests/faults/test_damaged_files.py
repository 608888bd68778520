"""Files that were damaged on disk: found, named, and no more than what was in them is lost."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tessera.client.recommendation import RecommendationClient
from tessera.common.errors import DataError, RunError
from tessera.common.metrics.records import Record
from tessera.common.utils.atomic_files import digest
from tessera.deploy.executors import inline
from tests.faults.killing import outcome
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics


def flipped(content: bytes) -> bytes:
    """The same with one bit of a tensor changed."""
    return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[: len(content) // 2],
    "a bit flipped": flipped,
    "empty": lambda content: b"",
}
ROUNDS = 6


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed when four rounds of it were done, "begun"; when five; and all six of them, "whole"."""
    folder = tmp_path_factory.mktemp("worlds")
    for name, rounds in (("begun", 4), ("five", 5), ("whole", ROUNDS)):
        inline.execute(small_job(folder, name, 2, rounds=rounds), lambda line: None)
    return folder


@pytest.fixture
def begun(worlds: Path, tmp_path: Path) -> Path:
    """A copy of the run that was begun, to be damaged."""
    shutil.copytree(worlds / "small", tmp_path / "small")
    return Path(shutil.copytree(worlds / "begun", tmp_path / "begun"))


def go_on(run: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Resume a run up to so many rounds; return its outcome."""
    inline.execute(small_job(run.parent, run.name, 2, rounds=rounds, resume=True), lambda line: None)
    return outcome(run)


def newest(run: Path, pattern: str) -> Path:
    return max(run.glob(pattern))


def states(run: Path, node: int) -> dict[str, str]:
    """A device's private states, by name."""
    return {path.name: digest(path.read_bytes()) for path in run.glob(f"devices/node-{node}/private/*/block-*/*")}


# --- the server's files


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    worlds: Path, begun: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is lost: the round runs again, and the run ends as if nothing had happened."""
    path = newest(begun, "checkpoints/*")
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert go_on(begun) == outcome(worlds / "whole")
    assert "checkpoint of round 4 is skipped" in caplog.text
    assert str(path) in caplog.text


def test_after_a_missing_checkpoint_the_run_goes_on_from_the_one_before(
    worlds: Path, begun: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest(begun, "checkpoints/*").unlink()
    assert go_on(begun) == outcome(worlds / "whole")
    assert "rounds after 3, up to 4, run again: there is no checkpoint of them" in caplog.text


def test_when_all_checkpoints_are_damaged_the_run_says_so_and_leaves_them_as_they_are(begun: Path) -> None:
    """The operator can restore one; the run does not begin again over what the devices have learnt."""
    for path in begun.glob("checkpoints/*"):
        path.write_bytes(flipped(path.read_bytes()))
    said = {"status.json", "run.log"}
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file() and path.name not in said}
    with pytest.raises(RunError, match=r"none of the checkpoints round-000002\.safetensors, .* is whole: restore one"):
        go_on(begun)
    assert {path: path.read_bytes() for path in before} == before
    assert json.loads((begun / "status.json").read_text())["state"] == "failed"


@pytest.mark.parametrize(
    ("file", "what"), [("status.json", "not readable JSON"), ("metrics.jsonl", "line 1, is damaged")]
)
def test_a_damaged_file_of_the_run_is_named(begun: Path, file: str, what: str) -> None:
    content = (begun / file).read_bytes()
    (begun / file).write_bytes(b"\xff" + content[1:])
    with pytest.raises(DataError, match=f"{file}.*{what}"):
        go_on(begun)
    (begun / file).write_bytes(content)
    assert go_on(begun)["metrics"][-1]["kind"] == "result"


# --- a device's files


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_private_state_is_set_aside_and_its_people_go_on_from_the_round_before(
    worlds: Path, begun: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They lose what one round taught them; nobody else's state is touched, and no round is without the device."""
    path = newest(begun, "devices/node-0/private/*/block-0000/*")
    assert path.name == "round-000004.safetensors"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    found = go_on(begun, rounds=5)
    assert f"{path} is" in caplog.text
    assert "set aside" in caplog.text
    assert {"round-000004.safetensors.corrupt", "round-000005.safetensors"} < states(begun, 0).keys()
    assert states(begun, 1)["round-000005.safetensors"] == states(worlds / "five", 1)["round-000005.safetensors"]
    assert [line["nodes"] for line in found["metrics"] if line["kind"] == "round"] == [2] * 5


def test_without_any_whole_private_state_a_device_refuses_and_the_others_go_on(
    worlds: Path, begun: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its people do not start afresh unasked. The server hears which node it was, and of whom nothing."""
    for path in begun.glob("devices/node-0/private/*/block-0000/*"):
        path.write_bytes(flipped(path.read_bytes()))
    found = go_on(begun)
    assert [line["nodes"] for line in found["metrics"] if line["kind"] == "round"] == [2, 2, 2, 2, 1, 1]
    assert "node 1 refused: DataError on the device; its own log says more" in caplog.text
    assert "no earlier state is left: restore the device's folder from a backup" in caplog.text
    assert "person-" not in caplog.text
    assert "round-000006.safetensors" in states(begun, 1)


def test_the_state_of_another_devices_people_is_nobodys_here(worlds: Path, begun: Path) -> None:
    """Whoever copies the wrong file over a device's own loses one round of its people, as with a damaged one."""
    mine, theirs = (newest(begun, f"devices/node-{node}/private/*/block-0000/*") for node in (0, 1))
    shutil.copyfile(theirs, mine)
    found = go_on(begun, rounds=5)
    assert [line["nodes"] for line in found["metrics"] if line["kind"] == "round"] == [2] * 5
    assert states(begun, 1)["round-000005.safetensors"] == states(worlds / "five", 1)["round-000005.safetensors"]


def test_damaged_views_are_sent_again(worlds: Path, begun: Path) -> None:
    """Nothing is lost but the bytes: each device asks for what it should still hold from the evaluation of round 2, which is
    asked apart where nodes are drawn."""
    run, federation = begun.parent / "fresh", {"clients_per_round": 2}

    def damage(line: Record) -> None:
        for path in run.glob("devices/*/views/*.safetensors"):
            path.write_bytes(flipped(path.read_bytes()))

    inline.execute(small_job(begun.parent, "drawn", 2, rounds=ROUNDS, federation=federation), lambda line: None)
    inline.execute(small_job(begun.parent, run.name, 2, rounds=ROUNDS, federation=federation), damage)
    assert outcome(run) == outcome(begun.parent / "drawn") == outcome(worlds / "whole")
    undisturbed, damaged = (
        next(
            line["bytes_down_per_node"] for line in read_metrics(path) if (line["kind"], line["round"]) == ("round", 3)
        )
        for path in (begun.parent / "drawn", run)
    )
    assert undisturbed == 0 < damaged


def test_a_damaged_note_of_an_old_run_does_not_stop_a_device(
    worlds: Path, begun: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = begun / "devices" / "node-0" / "private" / "an-old-run" / "run.json"
    old.parent.mkdir()
    old.write_text('{"run": ')
    assert go_on(begun) == outcome(worlds / "whole")
    assert f"{old} is not readable JSON" in caplog.text


def test_a_damaged_secret_is_named(begun: Path) -> None:
    device = RecommendationClient(begun / "devices" / "node-0")
    assert device.secret() == device.secret()
    (device.folder / "secret").write_text("")
    with pytest.raises(DataError, match=r"node-0/secret is damaged: restore it, or remove it"):
        device.secret()


def test_the_metrics_of_a_killed_run_are_read_up_to_the_line_that_was_cut_short(begun: Path) -> None:
    with (begun / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "rou')
    assert read_metrics(begun)[-1]["kind"] == "result"
