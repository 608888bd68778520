"""Tables of one's own: CSV and parquet, timestamps, items, features, and everything that can be wrong with them."""

import re
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
from tessera.common.datasets.preprocess import UNTIMED_RULE
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


def test_without_timestamps_rows_are_in_order_only_where_somebody_says_so(tmp_path: Path) -> None:
    """A file sorted by item would hold out the last items of the catalogue."""
    (tmp_path / "events.csv").write_text("user,item\nu,b\nu,a\nu,b\n")
    about = run(tmp_path / "events.csv", tmp_path / "out", in_order=True)
    assert events_of(tmp_path / "out") == [("u", "b", 0), ("u", "a", 1)]
    assert ("order of their rows" in about["rules"][-1], about["timed"]) == (True, True)
    about = run(tmp_path / "events.csv", tmp_path / "drawn")
    assert {time for _, _, time in events_of(tmp_path / "drawn")} == {0}
    assert (UNTIMED_RULE in about["rules"], about["timed"]) == (True, False)
    (tmp_path / "events.csv").write_text(EVENTS)
    with pytest.raises(DataError, match="has timestamps, which say the order: leave --in-order out"):
        run(tmp_path / "events.csv", tmp_path / "no", in_order=True)


@pytest.mark.parametrize(
    "times",
    [
        ("2024-01-02", "2024-01-01"),
        ("2024-01-01T10:00:01", "2024-01-01T10:00:00"),
        ("2024-01-01 10:00", "2024-01-01T10:00:00.123456+02:00"),
        ("2024-01-01T10:00:01Z", "2024-01-01"),
    ],
)
def test_iso_times(tmp_path: Path, times: tuple[str, str]) -> None:
    (tmp_path / "events.csv").write_text(f"user,item,timestamp\nu,a,{times[0]}\nu,b,{times[1]}\n")
    run(tmp_path, tmp_path / "out")
    (_, first, time), (_, second, _) = events_of(tmp_path / "out")
    assert (first, second) == ("b", "a")
    expected = datetime.fromisoformat(times[1])
    assert time == round((expected if expected.tzinfo else expected.replace(tzinfo=UTC)).timestamp() * 1_000_000)


@pytest.mark.parametrize(
    "wrong",
    [
        "01/02/2018",
        "31/12/2017",
        "2018-02-30",
        "2018-13-01",
        "2018-01-01T25:00",
        "2018-1-1",
        "1.5",
        "1e9",
        "Jan 1 2018",
    ],
)
def test_times_are_not_guessed(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "events.csv").write_text(f"user,item,timestamp\nu,a,2018-01-02\nu,b,{wrong}\n")
    with pytest.raises(DataError, match=rf"events.csv row 2: timestamp '{wrong}' is neither a whole number nor an ISO"):
        run(tmp_path, tmp_path / "out")
    (tmp_path / "events.csv").write_text("user,item,timestamp\nu,a,2018-01-02\nu,b,1514764800\n")
    with pytest.raises(DataError, match=r"row 1: timestamp '2018-01-02' .*|row 2: .*write all alike"):
        run(tmp_path, tmp_path / "out")


def test_columns_and_items_as_they_are_called(tmp_path: Path) -> None:
    """Semicolons, a byte-order mark, and the same name of the item's column in both files."""
    (tmp_path / "events.csv").write_bytes(
        b"\xef\xbb\xbfcustomer;sku;split\r\nann;b;train\r\nann;a;test\r\nann;c;Valid\r\nann;d;test\r\n"
    )
    (tmp_path / "items.csv").write_text(
        "sku\tname\tpicture\n" + "".join(f"{i}\tThe {i}\t{tmp_path / 'p.png'}\n" for i in "abcd")
    )
    np.save(tmp_path / "sound_features.npy", np.eye(4, dtype=np.float32))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "p.png")
    columns = {"user_column": "customer", "item_column": "sku", "title_column": "name", "image_column": "picture"}
    about = run(tmp_path, tmp_path / "out", images=True, **columns)
    catalogue = load_catalogue(tmp_path / "out")
    assert (catalogue.titles, catalogue.images[0]) == (("The a", "The b", "The c", "The d"), "images/000000.png")
    np.testing.assert_array_equal(catalogue.features["sound"].values, np.eye(4))
    split = load_interactions(tmp_path / "out", 4).split(given=True)
    assert (split.train_items.tolist(), split.validation.items.tolist()) == ([1], [2])
    assert sorted(split.test.items.tolist()) == [0, 3]
    assert "events.csv was read as UTF-8 with a byte-order mark with semicolons between columns" in about["rules"]
    assert "items.csv was read as UTF-8 with tabs between columns" in about["rules"]
    with pytest.raises(DataError, match="min_rating has no effect where the data say their split themselves"):
        run(tmp_path, tmp_path / "no", min_rating=1.0, **columns)


def test_a_share_of_the_users_is_the_same_people_whoever_else_there_is(tmp_path: Path) -> None:
    (tmp_path / "events.csv").write_text("user,item,timestamp\n" + "".join(f"u{n},a,{n}\n" for n in range(400)))
    about = run(tmp_path, tmp_path / "few", user_share=0.2)
    few = {user for user, _, _ in events_of(tmp_path / "few")}
    run(tmp_path, tmp_path / "more", user_share=0.6)
    assert 55 < len(few) < 105
    assert few < {user for user, _, _ in events_of(tmp_path / "more")}
    assert about["dropped"]["of users who were not drawn"] == 400 - len(few)
    (tmp_path / "events.csv").write_text("user,item,timestamp\n" + "".join(f"u{n},a,{n}\n" for n in range(200)))
    run(tmp_path, tmp_path / "again", user_share=0.2)
    assert {user for user, _, _ in events_of(tmp_path / "again")} == few & {f"u{n}" for n in range(200)}


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
        ("events.csv", "", r"events.csv is empty: its first line names the columns"),
        (
            "events.csv",
            "user,item,time,item\nu,tea,1,x\n",
            r"events.csv calls columns 2 and 4 'item': rename or remove",
        ),
        (
            "events.csv",
            "user,item\nu,tea\nu,cup,oops\n",
            r"events.csv line 3 has 3 fields, not 2: put a field with commas",
        ),
        ("items.csv", 'item,title\ntea,\ncup,12" vinyl\n"x,\n', r"items.csv line 3 is no row of a CSV file .*twice"),
        (
            "events.csv",
            "user,item,split\nu,tea,later\n",
            r"events.csv row 1: split is 'later', not train, validation or test",
        ),
        ("events.csv", "user,item,split\nu,tea,train\nu,tea,test\n", r"user 'u' and item 'tea' stand in two parts"),
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


def test_features_without_ids_are_refused_where_rows_are_not_those_of_the_items(shop: Path, tmp_path: Path) -> None:
    (shop / "sound_ids.npy").unlink()
    with pytest.raises(DataError, match=r"sound_ids.npy does not exist: .* 2 rows, there are 3 items"):
        run(shop, tmp_path / "out")


def test_a_missing_picture_is_named(shop: Path, tmp_path: Path) -> None:
    (shop / "pictures" / "tea.png").unlink()
    with pytest.raises(DataError, match=r"tea.png cannot be copied"):
        run(shop, tmp_path / "out", images=True)
    run(shop, tmp_path / "without")


def test_text_that_is_not_utf8_is_refused(shop: Path, tmp_path: Path) -> None:
    (shop / "items.csv").write_bytes("item,title\ntea,Thé\ncup,\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"items.csv line 2 is not UTF-8 \(byte 0xe9\): save .* iconv -f latin1"):
        run(shop, tmp_path / "out")


def test_a_folder_without_events_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no events.csv or events.parquet"):
        run(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("header", ["user,item,timestmp,rating", "user,item,timestamp,ratng"])
def test_a_misspelt_optional_column_is_not_ignored(tmp_path: Path, header: str) -> None:
    (tmp_path / "events.csv").write_text(header + "\na,x,1,5\n")
    with pytest.raises(DataError, match="rename whichever is misspelt"):
        convert("table", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1, 1], [1, 1], [1, 1]], "sound features: all rows are the same"),
        ([[1, 0], [0, 0], [0, 1]], "sound features: rows that are all zeros: 1, the first of item 'cup'"),
        (
            [[1, 0], [0, 900], [0, 1]],
            "10 times as long as the median one: 1, the longest of item 'cup', 900 to a median of 1",
        ),
        ([[1, 0], [0, 5], [0, 2]], r"sound features: rows are not of one length \(1 to 5\)"),
        ([[1, 0], [0, 1], [0, 1]], None),
    ],
)
def test_odd_features_are_remarked_on(shop: Path, tmp_path: Path, values: list[list[int]], message: str | None) -> None:
    (shop / "sound_ids.npy").unlink()
    np.save(shop / "sound_features.npy", np.array(values, dtype=np.float32))
    found = [rule for rule in run(shop, tmp_path / "out")["rules"] if rule.startswith("sound features")]
    assert [bool(re.search(message, rule)) for rule in found] == [True] if message else not found
