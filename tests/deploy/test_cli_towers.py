"""`tessera towers`, through the command line."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from tessera.benchmarks import cli
from tessera.benchmarks.harness.transfer import Carried, summary
from tessera.common.config.settings import TOWER_DIM
from tessera.common.data.catalogue import load_catalogue
from tessera.common.datasets import convert_shop
from tessera.common.encoders.towers import encoder_path, load_encoder
from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.io import load_reader, read_about, tower_path
from tessera.common.towers.transformer import SIZES
from tessera.deploy.cli.data import app as data
from tessera.deploy.cli.towers import app
from tessera.server.pretraining import encoder_training, reader_training
from tests.support.models import language_model, text_dataset
from tests.support.qa_devices import N_ITEMS, N_PUBLIC, qa_dataset


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qa_dataset(tmp_path_factory.mktemp("qa") / "data", n_clients=2)


@pytest.fixture
def dataset(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture(autouse=True)
def small_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit, align and train on as little as runs."""
    for module, name, value in (
        (reader_training, "BATCH", 8),
        (reader_training, "N_EVAL_QUESTIONS", 200),
    ):
        monkeypatch.setattr(module, name, value)


def run(*arguments: str | Path | int, command: typer.Typer = app) -> str:
    """Run a command; raise what it raised, return what it printed."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
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


FIT = """
import sys
from pathlib import Path
import torch
from tessera.server.pretraining import fit_readers, reader_training
reader_training.BATCH, reader_training.N_EVAL_QUESTIONS = 24, 200
threads = torch.get_num_threads()
fit_readers.fit_towers(Path(sys.argv[1]), ["tiny"], 4, lambda name, steps: lambda: None)
assert torch.get_num_threads() == threads  # the fit's one thread is the fit's own
"""


def test_two_processes_fit_the_same_bytes_however_many_threads_they_have(dataset: Path) -> None:
    fits = []
    for threads in ("1", "2"):
        for name in ("tiny", "base"):
            tower_path(dataset, name).unlink()
        environment = os.environ | {"OMP_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", FIT, str(dataset)], env=environment, check=True)
        fits.append({name: tower_path(dataset, name).read_bytes() for name in ("tiny", "base")})
    assert fits[0] == fits[1]


def test_what_cannot_be_fitted_is_said(dataset: Path) -> None:
    with pytest.raises(ConfigError, match="no device class 'huge'"):
        run("fit", dataset, "--classes", "huge")
    (dataset / "features" / "text.safetensors").unlink()
    with pytest.raises(DataError, match="no text features"):
        run("fit", dataset)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(encoder_training, "BATCH", 8)
    convert_shop(tmp_path / "shop", 100, 4)
    return tmp_path / "shop"


def test_towers_for_raw_pictures_and_texts_encode_what_they_were_fitted_on(shop: Path) -> None:
    chosen = ("--classes", "tiny", "--kinds", "image,text", "--steps", 20)
    printed = run("fit", shop, *chosen)
    assert [line.split()[1:4:2] for line in printed.splitlines() if "tiny" in line] == [
        ["tiny", "image"],
        ["tiny", "text"],
    ]
    paths = [encoder_path(shop / "towers", "tiny", kind) for kind in ("image", "text")]
    written = [path.stat().st_mtime_ns for path in paths]
    assert run("fit", shop, *chosen) == printed
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert not tower_path(shop, "base").exists()  # no reader was asked for
    encode = CliRunner().invoke(data, ["encode", str(shop), "--model", "tiny", "--device", "cpu"])
    assert encode.exception is None
    assert {part.values.shape for part in load_catalogue(shop).features.values()} == {(100, TOWER_DIM)}
    with pytest.raises(DataError, match="made by such a tower"):
        run("fit", shop, *chosen)


def test_a_small_tower_is_fitted_anew_once_there_is_a_large_one_to_derive_it_from(shop: Path) -> None:
    chosen = ("--kinds", "text", "--steps", 20)
    tiny = encoder_path(shop / "towers", "tiny", "text")
    keys = []
    for classes in ("tiny", "base", "tiny", "tiny,base"):
        run("fit", shop, "--classes", classes, *chosen)
        keys.append(read_about(tiny, "tower")["key"])
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_no_tower_sees_the_items_that_questions_keep_for_tests(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_training, "BATCH", 8)
    catalogue, path, towers = load_catalogue(dataset), encoder_path(dataset / "towers", "tiny", "text"), []
    for row in (N_ITEMS - 1, N_PUBLIC, N_PUBLIC - 1):
        titles = (*catalogue.titles[:row], "quite another", *catalogue.titles[row + 1 :])
        replace(catalogue, titles=titles).save(dataset)
        run("fit", dataset, "--classes", "tiny", "--kinds", "text", "--steps", 20)
        towers.append(torch.cat([tensor.flatten() for tensor in load_encoder(path, "text").state_dict().values()]))
    assert torch.equal(towers[0], towers[1])
    assert not torch.equal(towers[0], towers[2])


def test_pictures_that_are_missing_are_said(shop: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no kind of tower 'sound'"):
        run("fit", shop, "--kinds", "text,sound")
    with pytest.raises(DataError, match="no pictures: convert it with --images, or pass --images"):
        run("fit", dataset, "--kinds", "text,image")
    assert not encoder_path(dataset / "towers", "base", "text").exists()  # said before the first fit
    few = tmp_path / "few"
    few.mkdir()
    for item in load_catalogue(shop).items[:5]:
        shutil.copy(shop / "images" / f"{item}.png", few)
    with pytest.raises(DataError, match=r"3 items .* can teach a tower for image, and 2 others test it"):
        run("fit", shop, "--kinds", "image", "--images", few)


def test_a_transfer_is_tried_between_all_towers(dataset: Path) -> None:
    chosen = ("--classes", "tiny,base", "--alignments", "effects,random", "--rank", 4, "--steps", 3)
    printed = run(dataset, *chosen, "--task", "hush-0/2", command=cli.transfer)
    lines = [line.split() for line in printed.splitlines() if "relation" in line]
    pairs = {(line[3], line[5], line[7]) for line in lines}
    wanted = {("tiny", "base"), ("base", "tiny"), ("all", "all")}
    assert pairs == {(alignment, *pair) for alignment in ("effects", "random") for pair in wanted}
    again = run(dataset, *chosen, "--task", "hush-0/2", command=cli.transfer)
    assert printed[printed.index("┏") :] == again[again.index("┏") :]  # a slow machine's progress stands before it
    with pytest.raises(DataError, match="no task with 'flying'"):
        run(dataset, "--task", "flying", command=cli.transfer)


def test_a_transfer_is_tried_between_language_models(tmp_path: Path) -> None:
    data = text_dataset(tmp_path / "data", 1, written=True)
    models = [f"--model={name}={language_model(tmp_path / name, layers=4 + 2 * at)}" for at, name in enumerate("ab")]
    chosen = ("--alignments", "effects,random", "--rank", 4, "--steps", 3, "--batch", 4, "--seeds", "0,1")
    printed = run(data, *models, *chosen, "--task", "colour-0", command=cli.transfer)
    lines = [line.split() for line in printed.splitlines() if "colour" in line]
    assert {(line[3], line[5], line[7]) for line in lines} == {
        (alignment, *pair) for alignment in ("effects", "random") for pair in (("a", "b"), ("b", "a"), ("all", "all"))
    }
    assert all(float(line[11]) != 0 for line in lines), "P and Q change the tower that learnt"
    with pytest.raises(ConfigError, match="--model: write NAME=SOURCE"):
        run(data, "--model", "a", command=cli.transfer)
    with pytest.raises(ConfigError, match="--seeds: '0,x'"):
        run(data, *models, "--seeds", "0,x", command=cli.transfer)


def carried(gains: Sequence[tuple[float, float]]) -> list[Carried]:
    return [
        Carried("effects", "relation", f"task {number}", "tiny", "base", (0.5, 0.5 + own), (0.4, 0.4 + other))
        for number, (own, other) in enumerate(gains)
    ]


def test_the_share_that_is_carried_over_is_of_the_mean_gain() -> None:
    row = summary(carried([(0.2, 0.1), (0.2, 0.2)]))[0]
    assert row == ("all", "effects", "all", "all", "2", "+20.0 (0.0)", "+15.0 (5.0)", "75%")
    assert summary(carried([(-0.1, 0.1)]))[0][-1] == "-"
