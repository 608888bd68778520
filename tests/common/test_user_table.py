"""Tables of one's own: CSV and parquet, timestamps, items, features, and everything that can be wrong with them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert
from tessera.common.errors import DataError

EVENTS = "user,item,timestamp\nann,tea,3\nann,cup,1\nbob,tea,2\n"


def run(source: Path, out: Path, **options: Any) -> dict[str, Any]:
    return convert("table", source, out, Options(**{"min_user_events": 0, "min_item_events": 0, **options}))


def events_of(folder: Path) -> list[tuple[str, str, int]]:
    catalogue = load_catalogue(folder)
    frame = load_interactions(folder, len(catalogue)).frame()
    return [(user, catalogue.items[item], time) for user, item, time in frame.rows()]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    source = tmp_path / "shop"
    (source / "pictures").mkdir(parents=True)
    (source / "events.csv").write_text(EVENTS)
    (source / "items.csv").write_text(
        "item,title,text,image\ntea,Green tea,,pictures/tea.png\ncup,Cup,Holds tea.,\nnew,,,\n"
    )
    Image.new("RGB", (8, 8), "green").save(source / "pictures" / "tea.png")
    np.save(source / "sound_features.npy", np.array([[1, 2], [3, 4]], dtype=np.float64))
    np.save(source / "sound_ids.npy", np.array(["new", "tea"]))
    return source


def test_a_folder_with_everything(shop: Path, tmp_path: Path) -> None:
    about = run(shop, tmp_path / "out", images=True)
    catalogue = load_catalogue(tmp_path / "out")
    assert catalogue.items == ("cup", "new", "tea")
    assert catalogue.titles == ("Cup", "", "Green tea")
    assert catalogue.images == ("", "", "images/000002.png")
    assert (tmp_path / "out" / "images" / "000002.png").exists()
    sound = catalogue.features["sound"]
    assert (sound.values.dtype, sound.present.tolist()) == (np.float32, [False, True, True])
    np.testing.assert_array_equal(sound.values[1:], [[1, 2], [3, 4]])
    assert about["features"]["sound"]["encoder"] == "unknown"
    assert events_of(tmp_path / "out") == [("ann", "cup", 1), ("ann", "tea", 3), ("bob", "tea", 2)]


def test_items_without_events_go_with_a_minimum(shop: Path, tmp_path: Path) -> None:
    run(shop, tmp_path / "out", min_item_events=1)
    assert load_catalogue(tmp_path / "out").items == ("cup", "tea")


def test_one_file_with_columns_of_other_names(tmp_path: Path) -> None:
    frame = pl.DataFrame({"who": [7, 7, 8], "what": ["b", "a", "b"], "stars": [5, 1, 4], "day": [2, 1, 1]})
    frame.write_parquet(tmp_path / "log.parquet")
    columns = {"user_column": "who", "item_column": "what", "timestamp_column": "day", "rating_column": "stars"}
    run(tmp_path / "log.parquet", tmp_path / "out", min_rating=2, **columns)
    assert events_of(tmp_path / "out") == [("7", "b", 2), ("8", "b", 1)]


def test_a_column_that_was_named_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text(EVENTS)
    with pytest.raises(DataError, match="no column 'day'"):
        run(tmp_path, tmp_path / "out", timestamp_column="day")


def test_without_timestamps_rows_are_in_order(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item\nu,b\nu,a\nu,b\n")
    about = run(tmp_path / "events.csv", tmp_path / "out")
    assert events_of(tmp_path / "out") == [("u", "b", 0), ("u", "a", 1)]
    assert "order of their rows" in about["rules"][-1]


@pytest.mark.parametrize("times", [("2024-01-02", "2024-01-01"), ("2024-01-01T10:00:01", "2024-01-01T10:00:00")])
def test_iso_times(tmp_path: Path, times: tuple[str, str]) -> None:
    (tmp_path / "events.csv").write_text(f"user,item,timestamp\nu,a,{times[0]}\nu,b,{times[1]}\n")
    run(tmp_path, tmp_path / "out")
    (_, first, time), (_, second, _) = events_of(tmp_path / "out")
    assert (first, second) == ("b", "a")
    assert time == datetime.fromisoformat(times[1]).replace(tzinfo=UTC).timestamp() * 1_000_000


def test_parquet_times(tmp_path: Path) -> None:
    times = [datetime(2024, 1, 2), datetime(2024, 1, 1)]
    frame = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": times})
    frame.write_parquet(tmp_path / "events.parquet")
    run(tmp_path, tmp_path / "out")
    assert [item for _, item, _ in events_of(tmp_path / "out")] == ["b", "a"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("events.csv", "user,thing\nu,a\n", r"events.csv has no column 'item' \(it has user, thing\)"),
        (
            "events.csv",
            "user,item,timestamp\nu,tea,1\nu,cup,later\n",
            r"events.csv row 2: timestamp 'later' is neither",
        ),
        ("events.csv", "user,item,timestamp\nu,tea,2024-01-01\nu,cup,soon\n", r"events.csv row 2: timestamp 'soon'"),
        ("events.csv", "user,item,timestamp\nu,tea,later\n", r"events.csv row 1: timestamp 'later'"),
        ("events.csv", "user,item,timestamp\nu,tea,\n", r"events.csv row 1: timestamp is empty"),
        ("events.csv", "user,item,rating\nu,tea,\n", r"events.csv row 1: rating is empty"),
        ("events.csv", "user,item\nu,milk\n", r"user 'u' has an event with item 'milk'"),
        ("events.csv", "", r"events.csv is not a readable table"),
        ("events.csv", "user,item\n", r"none of the 0 interactions"),
        ("items.csv", "item,title\ntea,\n,Cup\n", r"items.csv row 2: item is empty"),
        ("items.csv", "name\ntea\n", r"items.csv has no column 'item'"),
        ("items.parquet", "", r"has items.csv and items.parquet: leave one"),
        ("sound_ids.npy", "no array", r"sound_ids.npy is not a readable .npy file"),
    ],
)
def test_malformed_tables_are_refused(shop: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (shop / file).write_text(text)
    with pytest.raises(DataError, match=message):
        run(shop, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SOUND = np.ones((2, 2), dtype=np.float32)


@pytest.mark.parametrize(
    ("values", "ids", "message"),
    [
        (SOUND, ["tea"], r"sound_features.npy has 2 rows, but sound_ids.npy names 1 items"),
        (SOUND, ["tea", "milk"], r"sound_features.npy has a row for item 'milk'"),
        (SOUND, ["tea", "tea"], r"sound_features.npy has two rows for item 'tea'"),
        (SOUND, [0.5, 1.5], r"sound_ids.npy holds float64"),
        (np.array([[1, 1], [1, np.nan]]), ["tea", "cup"], r"sound_features.npy row 1 \(item 'cup'\) is not finite"),
        (np.ones(2), ["tea", "cup"], r"sound_features.npy holds float64 \(2,\), not a matrix"),
        (np.ones((2, 2), dtype=np.int64), ["tea", "cup"], r"sound_features.npy holds int64"),
        (np.array([["a", None]], dtype=object), ["tea"], r"sound_features.npy is not a readable .npy file"),
    ],
)
def test_malformed_features_are_refused(
    shop: Path, tmp_path: Path, values: np.ndarray, ids: list[Any], message: str
) -> None:
    np.save(shop / "sound_features.npy", values)
    np.save(shop / "sound_ids.npy", np.array(ids))
    with pytest.raises(DataError, match=message):
        run(shop, tmp_path / "out")


def test_features_without_ids_are_refused(shop: Path, tmp_path: Path) -> None:
    (shop / "sound_ids.npy").unlink()
    with pytest.raises(DataError, match=r"sound_ids.npy does not exist"):
        run(shop, tmp_path / "out")


def test_a_missing_picture_is_named(shop: Path, tmp_path: Path) -> None:
    (shop / "pictures" / "tea.png").unlink()
    with pytest.raises(DataError, match=r"tea.png cannot be copied"):
        run(shop, tmp_path / "out", images=True)
    run(shop, tmp_path / "without")


def test_text_that_is_not_utf8_is_refused(shop: Path, tmp_path: Path) -> None:
    (shop / "items.csv").write_bytes("item,title\ntea,Thé\ncup,\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"items.csv is not a readable table: invalid utf-8"):
        run(shop, tmp_path / "out")


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no events.csv or events.parquet"):
        run(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("header", ["user,item,timestmp,rating", "user,item,timestamp,ratng"])
def test_a_misspelt_optional_column_is_not_ignored(tmp_path: Path, header: str) -> None:
    (tmp_path / "events.csv").write_text(header + "\na,x,1,5\n")
    with pytest.raises(DataError, match="rename whichever is misspelt"):
        convert("table", tmp_path, tmp_path / "out")
