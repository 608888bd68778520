"""The `tessera` command as a person runs it: processes, their exit codes, and what they print and leave behind."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer
import yaml
from click import Command, Context, Group

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import convert_shop
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.cli import main as cli
from tests.support.metrics import read_metrics

pytestmark = pytest.mark.integration
TESSERA = Path(sys.executable).parent / "tessera"
N_ITEMS, N_USERS = 120, 40
SETTINGS = {
    "name": "small",
    "data": {"folder": "shop", "kind": "converted"},
    "rounds": 2,
    "views": {"dim": 8, "id_dim": 8},
    "evaluation": {"every": 2},
    "federation": {"nodes": 2},
}


def tessera(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder, on wide paper, on one thread, with no dataset folder in its environment."""
    environment = os.environ | {"COLUMNS": "250", "OMP_NUM_THREADS": "1"}
    environment.pop("TESSERA_DATA", None)
    command = [str(TESSERA), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The line of JSON a run ends with."""
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that could not do its work said: one message, no traceback, nothing a program would take for a result."""
    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr + done.stdout
    assert not any(line.startswith("{") for line in done.stdout.splitlines())
    return done.stderr.strip()


def recommended(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    """The rows of the table of recommendations, cell by cell."""
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    return [row for row in rows if row[0].isdigit()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small shop below data/ and the settings of a run."""
    folder = tmp_path_factory.mktemp("desk")
    convert_shop(folder / "data" / "shop", n_items=N_ITEMS, n_users=N_USERS)
    (folder / "small.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def trained(desk: Path) -> subprocess.CompletedProcess[str]:
    return tessera("train", "small.yaml", "--data", "data", "--runs", "runs", cwd=desk)


@pytest.fixture
def copied(desk: Path, trained: subprocess.CompletedProcess[str], tmp_path: Path) -> Path:
    """The trained run in a folder of its own, where a test may go on with it."""
    figures(trained)
    shutil.copytree(desk / "runs", tmp_path / "runs")
    shutil.copy(desk / "small.yaml", tmp_path)
    return tmp_path


@pytest.fixture
def here(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process, where starting one each time would cost seconds: exit code, output and errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tessera", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0), *capsys.readouterr()

    monkeypatch.chdir(desk)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.delenv("TESSERA_DATA", raising=False)
    return run


def test_train_ends_with_one_line_of_json(trained: subprocess.CompletedProcess[str]) -> None:
    found = figures(trained)
    assert sum(line.startswith("{") for line in trained.stdout.splitlines()) == 1
    assert (found["name"], found["rounds"], found["seed"], found["selected_round"]) == ("small", 2, 0, 2)
    assert found["test"]["users"] == found["validation"]["users"] == N_USERS
    for k in (10, 20, 50):
        assert 0 <= found["test"][f"ndcg@{k}"] <= found["test"][f"hr@{k}"] <= 100
    assert {"random", "popularity", "content-all"} <= set(found["baselines"])
    assert found["bytes_up_per_node"] > 0
    assert found["seconds_per_round"] > 0


def test_a_pipe_gets_the_table_and_progress_as_plain_text(trained: subprocess.CompletedProcess[str]) -> None:
    assert "\x1b" not in trained.stdout
    assert f"{N_USERS} users on 2 nodes" in trained.stdout
    assert re.search(r"^round 2/2  loss \d+\.\d+  ndcg@50 \d+\.\d+%", trained.stdout, re.MULTILINE)
    random = next(line for line in trained.stdout.splitlines() if line.strip().startswith("random"))
    assert f"{figures(trained)['baselines']['random']['hr@50']:.2f}" in random


def test_the_runs_folder_tells_what_was_run(desk: Path, trained: subprocess.CompletedProcess[str]) -> None:
    run = desk / "runs" / "small"
    assert read_json(run / "status.json")["state"] == "completed"
    log = (run / "run.log").read_text()
    assert re.search(r"round 1: \d+ users on 2 nodes trained, mean loss \d+\.\d+", log)
    assert "round 2 was selected" in log
    assert log.splitlines()[-1].endswith(": completed")
    assert "user-" not in log
    assert "item-" not in log
    assert yaml.safe_load((run / "config.yaml").read_text())["views"]["dim"] == 8
    lines = read_metrics(run)
    assert [line["kind"] for line in lines] == [
        "item_statistics",
        "round",
        "round",
        "evaluation",
        "baselines",
        "result",
    ]
    assert lines[-1]["scores"]["test/all/hr@50"] == pytest.approx(figures(trained)["test"]["hr@50"], abs=1e-3)


def test_a_second_run_of_the_same_name_is_refused(desk: Path, trained: subprocess.CompletedProcess[str]) -> None:
    figures(trained)
    before = (desk / "runs" / "small" / "metrics.jsonl").read_bytes()
    message = refusal(tessera("train", "small.yaml", "--data", "data", "--runs", "runs", cwd=desk))
    assert "runs/small holds a run already" in message
    assert "--resume" in message
    assert "--overwrite" in message
    assert (desk / "runs" / "small" / "metrics.jsonl").read_bytes() == before


def test_overwrite_starts_anew_with_changed_settings(desk: Path, copied: Path) -> None:
    before = read_json(copied / "runs" / "small" / "status.json")["run"]
    changes = ("--set", "rounds=1", "--set", "local.backbone=fedavg", "--set", "evaluation.ks=[5]", "--nodes", "1")
    options = ("--data", desk / "data" / "shop", "--overwrite", "--set", "evaluation.baselines=false")
    done = tessera("train", "small.yaml", *options, *changes, cwd=copied)
    found = figures(done)
    assert (found["rounds"], set(found["test"])) == (1, {"users", "hr@5", "ndcg@5"})
    assert found["baselines"] == {}
    run = copied / "runs" / "small"
    assert read_json(run / "status.json")["run"] != before
    assert yaml.safe_load((run / "config.yaml").read_text())["local"]["backbone"] == {"name": "fedavg"}
    assert [folder.name for folder in (run / "devices").iterdir()] == ["node-0"]


def test_resume_goes_on_to_more_rounds(desk: Path, copied: Path) -> None:
    before = read_json(copied / "runs" / "small" / "status.json")["run"]
    options = ("--data", desk / "data", "--resume", "--set", "rounds=4")
    found = figures(tessera("train", "small.yaml", *options, cwd=copied))
    assert found["rounds"] == 4
    assert read_json(copied / "runs" / "small" / "status.json")["run"] == before
    rounds = [line["round"] for line in read_metrics(copied / "runs" / "small") if line["kind"] == "round"]
    assert rounds == [1, 2, 3, 4]


def test_there_must_be_a_run_to_resume(desk: Path) -> None:
    message = refusal(tessera("train", "small.yaml", "--data", "data", "--runs", "empty", "--resume", cwd=desk))
    assert "empty/small holds no run to resume" in message
    assert not (desk / "empty").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "local.learning_rat=1"), "unknown setting 'local.learning_rat'.*'local.learning_rate'"),
        (("--set", "rounds=0"), "small.yaml: rounds: "),
        (("--set", "rounds"), "'rounds': write KEY=VALUE"),
        ((), "where is 'shop'\\? Pass --data, or set TESSERA_DATA"),
        (("--data", "nowhere"), "--data nowhere does not exist: name the folder that holds 'shop'"),
        (("--data", "data/shop/images"), "nor is it a converted dataset"),
    ],
)
def test_mistakes_are_explained(
    arguments: tuple[str, ...], message: str, desk: Path, here: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, told = here("train", "small.yaml", "--runs", "none", *arguments)
    assert code == 1
    assert re.search(f"^error: .*{message}", told)
    assert not (desk / "none").exists(), "nothing is left of a run that never began"


def test_a_folder_may_have_any_name(here: Callable[..., tuple[int, str, str]]) -> None:
    """Neither a pattern nor markup."""
    code, shown, told = here("train", "small.yaml", "--data", "data", "--runs", "runs [a]*", "--set", "rounds=1")
    assert (code, told) == (0, "")
    assert "run folder: runs [a]*/small" in shown
    assert json.loads(shown.splitlines()[-1])["rounds"] == 1


def test_a_message_shows_names_as_they_are(tmp_path: Path) -> None:
    """Square brackets in a path or a text are no markup."""
    assert "my[old].yaml does not exist" in refusal(tessera("train", "my[old].yaml", cwd=tmp_path))
    assert "[/old].yaml does not exist" in refusal(tessera("train", "[/old].yaml", cwd=tmp_path))


def test_recommendations_are_titles_the_person_has_not_had(
    desk: Path, trained: subprocess.CompletedProcess[str]
) -> None:
    figures(trained)
    folder = desk / "runs" / "small" / "devices" / "node-1"
    catalogue = load_catalogue(folder, modalities=False)
    events = load_interactions(folder, N_ITEMS)
    row = 3
    had = {catalogue.titles[item] for item in events.items[events.offsets[row] : events.offsets[row + 1]]}
    done = tessera("recommend", "--data-dir", folder, "--user", events.users[row], "-k", "7", cwd=desk)
    rows = recommended(done)
    assert [cells[0] for cells in rows] == [str(place) for place in range(1, 8)]
    titles, scores, like = ([cells[column] for cells in rows] for column in (1, 2, -1))
    assert set(titles) <= set(catalogue.titles) - had
    assert len(set(titles)) == 7
    assert sorted(map(float, scores), reverse=True) == list(map(float, scores))
    assert set(like) <= had, "the reason is something the person has"
    assert re.search(r"this person goes by: .*\d%", done.stdout)


def test_titles_are_shown_as_they_are(copied: Path) -> None:
    """Titles come from anywhere; square brackets in them are no markup."""
    folder = copied / "runs" / "small" / "devices" / "node-0"
    frame = pl.read_parquet(folder / "items.parquet")
    frame.with_columns(title="[b]" + pl.col("item") + " [director's cut] [/i]").write_parquet(folder / "items.parquet")
    user = load_interactions(folder, N_ITEMS).users[0]
    rows = recommended(tessera("recommend", "--data-dir", folder, "--user", user, "-k", "3", cwd=copied))
    assert len(rows) == 3
    assert all(re.fullmatch(r"\[b\]item-\d+ \[director's cut\] \[/i\]", cells[1]) for cells in rows)


def test_a_stranger_gets_no_recommendations(desk: Path, trained: subprocess.CompletedProcess[str]) -> None:
    figures(trained)
    folder = desk / "runs" / "small" / "devices" / "node-0"
    message = refusal(tessera("recommend", "--data-dir", folder, "--user", "nobody", cwd=desk))
    assert "user 'nobody' is not on this device" in message


def test_nothing_is_recommended_before_training(desk: Path) -> None:
    message = refusal(tessera("recommend", "--data-dir", "data/shop", "--user", "user-00", cwd=desk))
    assert "data/shop is no device's folder but a dataset's" in message
    assert tessera("data", "partition", "data/shop", "alone", "--nodes", "1", cwd=desk).returncode == 0
    message = refusal(tessera("recommend", "--data-dir", "alone/node-0", "--user", "user-00", cwd=desk))
    assert "it has not trained yet" in message


def test_a_run_that_diverges_stops_and_says_so(desk: Path) -> None:
    changes = (
        "--set",
        "name=wild",
        "--set",
        "local.optimizer=sgd",
        "--set",
        "local.learning_rate=1e9",
        "--set",
        "server.optimizer=sgd",
        "--set",
        "server.learning_rate=1e9",
    )
    options = ("--data", "data", "--runs", "runs", "--set", "rounds=10", *changes)
    message = refusal(tessera("train", "small.yaml", *options, cwd=desk))
    told = re.search(r"round (\d+): the (?:loss|scores) of (\d+) of (\d+) users (?:is|are) not finite", message)
    assert told, message
    assert 1 <= int(told.group(1)) <= 10
    assert 1 <= int(told.group(2)) <= int(told.group(3)) == N_USERS
    assert "lower the learning rate" in message
    status = read_json(desk / "runs" / "wild" / "status.json")
    assert status["state"] == "failed"
    assert told.group(0) in status["reason"]
    assert not any(f"user-{number:02d}" in message + status["reason"] for number in range(N_USERS)), "nobody is named"
    assert [line["kind"] for line in read_metrics(desk / "runs" / "wild")][-1] != "result"


def leaves(command: Command | None, *path: str) -> list[tuple[str, ...]]:
    """The names of all commands that do something, each imported as when it is called."""
    if not isinstance(command, Group):
        return [path]
    context = Context(command)
    called = {name: command.resolve_command(context, [name])[1] for name in command.list_commands(context)}
    return [leaf for name, part in called.items() for leaf in leaves(part, *path, name)]


def test_every_command_has_help_with_an_example(here: Callable[..., tuple[int, str, str]]) -> None:
    commands = leaves(typer.main.get_command(cli.app))
    expected = {("train",), ("demo",), ("recommend",), ("data", "convert"), ("towers", "transfer")}
    assert expected <= set(commands)
    for command in commands:
        code, shown, _ = here(*command, "--help")
        assert code == 0, command
        assert re.search(rf"Examples?: .*tessera {' '.join(command)}", shown), command


def test_help_lists_what_there_is(tmp_path: Path) -> None:
    done = tessera("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(re.search(rf"\b{name}\b", done.stdout) for name in ("train", "demo", "recommend", "data", "federate"))
    assert list(tmp_path.iterdir()) == [], "asking for help leaves nothing behind"


def test_the_list_of_commands_says_of_each_what_it_says_itself() -> None:
    for name, listed in cli.COMMANDS.items():
        assert cli.load(name, listed.target).get_short_help_str(200) == listed.help


def test_a_command_that_there_is_not_is_answered_with_the_nearest(here: Callable[..., tuple[int, str, str]]) -> None:
    code, _, told = here("trian")
    assert code == 2
    assert "Did you mean 'train'?" in told


def test_the_version_is_that_of_the_package(here: Callable[..., tuple[int, str, str]]) -> None:
    assert here("--version")[:2] == (0, f"tessera {version('tessera')}\n")
