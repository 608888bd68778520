"""The converters on the real data, where TESSERA_DATA names their folder."""

import os
from pathlib import Path

import numpy as np
import pytest

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert, describe

DATA = os.environ.get("TESSERA_DATA")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA, reason="TESSERA_DATA does not name the folder with the real data"),
]


def source(name: str) -> Path:
    folder = Path(DATA or "") / name
    if not folder.exists():
        pytest.skip(f"{folder} does not exist")
    return folder


def test_movielens_gives_the_papers_numbers(tmp_path: Path) -> None:
    about = convert("movielens", source("ml-latest-small"), tmp_path / "ml")
    assert about["counts"] == {"users": 610, "items": 3650, "interactions": 90274}
    assert about["read"] == 100836
    assert {name: features["missing"] for name, features in about["features"].items()} == {"image": 102, "text": 0}
    catalogue = load_catalogue(tmp_path / "ml")
    numbers = [int(item) for item in catalogue.items]
    assert numbers == sorted(numbers)
    assert catalogue.titles[0] == "Toy Story (1995)"
    assert catalogue.texts[0].startswith("Led by Woody")
    events = load_interactions(tmp_path / "ml", len(catalogue))
    new_user = np.zeros(len(events), dtype=bool)
    new_user[events.offsets[1:-1]] = True
    tied = (np.diff(events.timestamps) == 0) & ~new_user[1:]
    assert tied.sum() > 10_000
    assert 0.45 < (np.diff(events.items)[tied] > 0).mean() < 0.55  # ties are in no order of items


def test_movielens_features_are_those_of_the_items(tmp_path: Path) -> None:
    folder = source("ml-latest-small")
    convert("movielens", folder, tmp_path / "ml")
    catalogue = load_catalogue(tmp_path / "ml")
    ids, raw = np.load(folder / "image_ids.npy").tolist(), np.load(folder / "image_features.npy")
    image = catalogue.features["image"]
    for row in range(0, len(catalogue), 97):
        item = int(catalogue.items[row])
        assert image.present[row] == (item in ids)
        if item in ids:
            np.testing.assert_array_equal(image.values[row], raw[ids.index(item)])


def test_movielens_posters(tmp_path: Path) -> None:
    options = Options(min_user_events=50, min_item_events=30, images=True)
    convert("movielens", source("ml-latest-small"), tmp_path / "ml", options)
    images = load_catalogue(tmp_path / "ml").images
    assert any(images)
    assert all((tmp_path / "ml" / image).stat().st_size for image in images if image)


def test_ku_keeps_its_own_split(tmp_path: Path) -> None:
    about = convert("fedvlr", source("ku"), tmp_path / "ku")
    assert about["counts"] == {"users": 204, "items": 560, "interactions": 3484}
    assert (about["read"], about["dropped"]["repeated"]) == (3489, 5)
    split = describe(tmp_path / "ku")["split"]
    assert (split["train"], split["validation"], split["test"]) == (3081 - 5, 204, 204)
    assert split["cold_targets"] == pytest.approx(0.43, abs=0.005)


def test_beauty(tmp_path: Path) -> None:
    about = convert("sequences", source("amazon-beauty-2014"), tmp_path / "beauty")
    assert about["counts"] == {"users": 22363, "items": 12101, "interactions": 198502}
    assert about["features"] == {}
    assert describe(tmp_path / "beauty")["split"]["test"] == 22363
