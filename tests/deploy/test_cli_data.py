"""`tessera data`, through the command line."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.common.errors import TesseraError
from tessera.common.registry.converters import CONVERTERS
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.cli.data import app


def run(*arguments: str | Path) -> str:
    """Run a command; raise what it raised, return what it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def events(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("customer,sku,stars\nann,tea,5\nann,cup,2\nbob,tea,4\nbob,cup,5\nbob,jug,5\n")
    return path


NAMES = ("--user-column", "customer", "--item-column", "sku", "--rating-column", "stars")


def test_convert_describes_what_it_made(events: Path, tmp_path: Path) -> None:
    options = (*NAMES, "--min-user-events", 1, "--min-item-events", 2, "--min-rating", 3)
    printed = run("convert", "table", events, tmp_path / "out", *map(str, options))
    about = read_json(tmp_path / "out" / "dataset.json")
    assert about["counts"] == {"users": 2, "items": 1, "interactions": 2}
    assert about["filters"] == {"min_user_events": 1, "min_item_events": 2, "min_rating": 3.0}
    assert "out (table, from log.csv)" in printed
    assert "no features" in printed
    assert run("describe", tmp_path / "out") == printed


def test_encode_makes_features(events: Path, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,title\ntea,Tea\ncup,Cup\njug,Jug\n")
    least = ("--min-user-events", "0", "--min-item-events", "0")
    printed = run("convert", "table", events, tmp_path / "out", *NAMES, *least, "--encode", "builtin")
    assert "hashed-ngrams-v1" in printed


def test_shop(tmp_path: Path) -> None:
    printed = run("shop", tmp_path / "shop", "--items", "90", "--users", "8", "--seed", "4")
    assert "shop (shop, from generated)" in printed
    about = read_json(tmp_path / "shop" / "dataset.json")
    assert (about["seed"], about["counts"]["items"], about["counts"]["users"]) == (4, 90, 8)
    with pytest.raises(TesseraError, match="--overwrite"):
        run("shop", tmp_path / "shop", "--items", "90", "--users", "8")
    run("shop", tmp_path / "shop", "--items", "90", "--users", "9", "--overwrite")
    assert read_json(tmp_path / "shop" / "dataset.json")["counts"]["users"] == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("shop", "-", "out", "--min-rating", "1"),
            "--min-rating has no effect on .*shop.* for movielens, amazon, recbole, table",
        ),
        (("fedvlr", "ku", "out", "--min-user-events", "5"), "--min-user-events has no effect on .*fedvlr"),
        (("movielens", "nowhere", "out"), "nowhere does not exist"),
        (("netflix", ".", "out"), "no kind of data 'netflix'"),
        (("table", ".", "out", "--pretrained", "x"), "--pretrained needs a model"),
        (("sequences", ".", "out", "--images"), "--images has no effect on .*sequences"),
        (
            ("movielens", ".", "out", "--user-column", "who"),
            "--user-column has no effect on .*movielens.* it is for table",
        ),
        (("table", ".", "out", "--encode", "ViT-B-32"), "--pretrained"),
        (("table", ".", "out", "--encode", "builtin", "--pretrained", "x"), "--pretrained has no effect on .*builtin"),
        (("table", ".", "out", "--min-rating", "inf"), "min_rating is inf"),
    ],
)
def test_mistakes_are_explained(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TesseraError, match=message):
        run("convert", *arguments)
    assert not (tmp_path / "out").exists()


def test_help_has_an_example_for_each_and_explains_every_kind() -> None:
    for command in ("convert", "shop", "describe"):
        assert f"tessera data {command}" in run(command, "--help")
    printed = run("convert", "--help")
    assert all(f"{kind}:" in printed for kind in CONVERTERS)
