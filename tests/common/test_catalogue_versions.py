"""Versions of a dataset's catalogue: what is added, changed and retired, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tessera.common.data.catalogue import load_catalogue
from tessera.common.datasets import convert_shop, describe
from tessera.common.datasets.catalogue_versions import difference, retire_items
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import write_tensors
from tessera.deploy.cli.data import app


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, ["catalogue", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def table(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "items.csv").write_text(text, encoding="utf-8")
    return folder / "items.csv"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "shop"
    convert_shop(folder, 80, 4)
    return folder


@pytest.fixture
def shop(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "shop")
    return tmp_path / "shop"


def test_a_life_of_a_catalogue(shop: Path, made: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new", "item,title,text,image\nnew-1,Same,,own.png\nnew-2,,,\n")
    shutil.copy(shop / "images/item-03.png", new.parent / "own.png")
    assert "2 added" in run("add", shop, new)
    first, grown = load_catalogue(made), load_catalogue(shop)
    assert grown.items == (*first.items, "new-1", "new-2")
    assert grown.extends(first)
    for name, features in first.features.items():
        np.testing.assert_array_equal(grown.features[name].values[:80], features.values)
        np.testing.assert_array_equal(grown.features[name].standardised()[:80], features.standardised())
        assert grown.features[name].present[80:].tolist() == [True, False]
    np.testing.assert_array_equal(grown.features["image"].values[80], grown.features["image"].values[3])
    assert (shop / grown.images[80]).read_bytes() == (shop / "images/item-03.png").read_bytes()

    other = table(tmp_path / "other", "item,title,image\nitem-03,,other.png\nitem-04,Words,\nitem-05,,\n")
    shutil.copy(shop / "images/item-07.png", other.parent / "other.png")
    assert json.loads(run("change", shop, other, "--json"))["changed"] == ["item-03", "item-04"]
    changed = load_catalogue(shop)
    assert changed.sha256 == grown.sha256
    np.testing.assert_array_equal(changed.features["image"].values[3], first.features["image"].values[7])
    np.testing.assert_array_equal(changed.features["text"].values[3], first.features["text"].values[3])
    assert changed.titles[3:5] == (first.titles[3], "Words")
    assert not (changed.features["text"].values[4] == first.features["text"].values[4]).all()
    assert not (shop / "images/item-03.png").exists()
    assert (shop / changed.images[3]).exists()

    (tmp_path / "gone.txt").write_text("item-05\n\nitem-06\n", encoding="utf-8")
    run("retire", shop, first.titles[10], "--file", tmp_path / "gone.txt")
    found = json.loads(run("diff", made, shop, "--json"))
    assert found == {
        "extends": True,
        "added": ["new-1", "new-2"],
        "changed": ["item-03", "item-04"],
        "retired": ["item-05", "item-06", "item-10"],
        "back": [],
        "missing": [],
    }
    assert "no later version" in run("diff", shop, made)
    assert json.loads(run("retire", shop, "item-05", "--back", "--json"))["back"] == ["item-05"]
    about = describe(shop)
    versions = about["catalogue"]["history"]
    assert [one["version"] for one in versions] == [1, 2, 3, 4, 5]
    assert [one["parent"] for one in versions[1:]] == [one["sha256"] for one in versions[:-1]]
    assert about["catalogue"]["sha256"] == load_catalogue(shop).sha256 == versions[-1]["sha256"]
    assert len({one["content"] for one in versions}) == 5
    assert about["counts"]["items"] == 82


def test_ready_features_take_the_place_of_computed_ones(shop: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new", "item,title\na,One\nb,Two\n")
    width = load_catalogue(shop).features["image"].values.shape[1]
    rows = torch.arange(2 * width).view(2, width).float()
    write_tensors(new.parent / "image.safetensors", {"features": rows, "present": torch.tensor([False, True])})
    assert "their image features are given" in run("add", shop, new, "--features", new.parent)
    image = load_catalogue(shop).features["image"]
    assert image.present[-2:].tolist() == [False, True]
    np.testing.assert_array_equal(image.values[-1], rows[1])
    write_tensors(new.parent / "image.safetensors", {"features": rows[:, 1:]})
    with pytest.raises(DataError, match=r"have 215 columns, those of .* 216"):
        run("add", shop, table(tmp_path / "new", "item\nc\nd\n"), "--features", new.parent)


@pytest.mark.parametrize(
    ("command", "rows", "message"),
    [
        ("add", "item,title\nitem-03,X\n", "item 'item-03' is in .* already: `change`"),
        ("add", "item,title\na,X\na,Y\n", "names item 'a' more than once"),
        ("add", "item,title\n,X\n", "row 1: item is empty"),
        ("add", "title\nX\n", "has no column 'item'"),
        ("add", "item,image\na,none.png\n", "none.png does not exist"),
        ("change", "item,title\na,X\n", "item 'a' is not in .*: `add`"),
        ("change", "item,title\nitem-03,\n", "changes nothing"),
    ],
)
def test_what_is_refused_changes_nothing(shop: Path, tmp_path: Path, command: str, rows: str, message: str) -> None:
    before = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=message):
        run(command, shop, table(tmp_path / "new", rows))
    left = {path: path.read_bytes() for path in shop.rglob("*") if path.is_file() and path.name != ".change.lock"}
    assert left == before


def test_retiring_what_is_retired_or_all_is_refused(shop: Path) -> None:
    run("retire", shop, "item-03")
    for arguments, message in (
        (["item-03"], "'item-03' of .* is retired already"),
        (["item-04", "--back"], "'item-04' of .* is not retired"),
        (["nothing"], "no item has the id 'nothing'"),
        ([], "name items"),
        ([f"item-{n:02d}" for n in range(80) if n != 3], "no item of .* would be left"),
    ):
        with pytest.raises(DataError, match=message):
            run("retire", shop, *arguments)


DYING = """
import os, shutil, signal, sys
from pathlib import Path
from tessera.common.datasets.catalogue_versions import add_items, retire_items
from tessera.common.datasets.new_content import NewContent

made, table, out = map(Path, sys.argv[1:])
rename, left = Path.replace, 0

def counting(self, target):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return rename(self, target)

Path.replace = counting
for step in (0, 4, 5, 8, 9, 12):
    shutil.copytree(made, out / str(step))
    if not os.fork():
        left = step
        add_items(out / str(step), NewContent.read(table))
        retire_items(out / str(step), [0])
        os._exit(0)
    os.wait()
"""


def test_killed_at_any_rename_there_is_the_old_version_or_the_new(made: Path, tmp_path: Path) -> None:
    new = table(tmp_path / "new", "item\na\n")
    subprocess.run([sys.executable, "-c", DYING, made, new, tmp_path / "out"], check=True)
    seen, old = [], load_catalogue(made)
    for step in (0, 4, 5, 8, 9, 12):
        shop = tmp_path / "out" / str(step)
        found = load_catalogue(shop)
        described = describe(shop)  # its files are those that dataset.json tells of
        version = described.get("catalogue", {"version": 1, "sha256": old.sha256})
        assert version["sha256"] == found.sha256
        assert len(difference(old, found).added) == (version["version"] > 1)
        seen.append(version["version"])
        retire_items(shop, [1])
    assert seen == [1, 1, 2, 2, 2, 3]
