"""`tessera towers`, through the command line."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConfigError, DataError
from common.towers.files import load_reader, read_about, tower_path
from common.towers.towers import SIZES
from deploy import transfer
from deploy.cli_towers import app
from deploy.transfer import Carried, summary
from server import distillation, start
from tests.pupils import pupils_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pupils_dataset(tmp_path_factory.mktemp("pupils") / "data", n_clients=2)


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture(autouse=True)
def small_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, align and train on as little as runs."""
    for module, name, value in (
        (distillation, "BATCH", 8),
        (distillation, "ASKED", 200),
        (start, "ASKED", 60),
        (transfer, "STEPS", 3),
    ):
        monkeypatch.setattr(module, name, value)


def run(*arguments: str | Path | int) -> str:
    """Run a command; raise what it raised, return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_a_class_is_fitted_with_the_largest_and_only_once(dataset: Path) -> None:
    printed = run("fit", dataset, "--classes", "tiny", "--steps", 20)
    assert "tiny" in printed
    assert "base" not in printed  # it was made, but not asked for
    paths = [tower_path(dataset, name) for name in ("tiny", "base")]
    written = [path.stat().st_mtime_ns for path in paths]
    assert load_reader(paths[0]).positions.shape[1] == SIZES["tiny"].width
    assert 0 <= read_about(paths[0])["accuracy"]["all"] <= 1
    assert run("fit", dataset, "--classes", "tiny", "--steps", 20) == printed
    assert [path.stat().st_mtime_ns for path in paths] == written
    run("fit", dataset, "--classes", "base", "--steps", 21)
    assert paths[1].stat().st_mtime_ns != written[1]


def test_what_cannot_be_fitted_is_said(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="no device class 'huge'"):
        run("fit", dataset, "--classes", "huge")
    (dataset / "features" / "text.safetensors").unlink()
    with pytest.raises(DataError, match="modality 'text'"):
        run("fit", dataset)


def test_a_transfer_is_tried_between_all_towers(dataset: Path) -> None:
    chosen = ("--classes", "tiny,base", "--alignments", "effects,random", "--rank", 4)
    printed = run("transfer", dataset, *chosen, "--task", "hush-0/2")
    lines = [line.split() for line in printed.splitlines() if "relation" in line]
    pairs = {(line[3], line[5], line[7]) for line in lines}
    wanted = {("tiny", "base"), ("base", "tiny"), ("all", "all")}
    assert pairs == {(alignment, *pair) for alignment in ("effects", "random") for pair in wanted}
    assert printed == run("transfer", dataset, *chosen, "--task", "hush-0/2")
    with pytest.raises(DataError, match="no task with 'flying'"):
        run("transfer", dataset, "--task", "flying")


def carried(gains: Sequence[tuple[float, float]]) -> list[Carried]:
    return [
        Carried("effects", "relation", f"task {number}", "tiny", "base", (0.5, 0.5 + own), (0.4, 0.4 + other))
        for number, (own, other) in enumerate(gains)
    ]


def test_the_share_that_is_carried_over_is_of_the_mean_gain() -> None:
    row = summary(carried([(0.2, 0.1), (0.2, 0.2)]))[0]
    assert row == ("all", "effects", "all", "all", "2", "+20.0 (0.0)", "+15.0 (5.0)", "75%")
    assert summary(carried([(-0.1, 0.1)]))[0][-1] == "-"
