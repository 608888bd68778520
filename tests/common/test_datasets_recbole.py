"""RecBole's atomic files, as they are published."""

from pathlib import Path

import pytest

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert
from tessera.common.errors import DataError

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
EVENTS = "196\t242\t3\t881250949\n196\t7\t4.0\t881250900\n22\t242\t1\t878887116\n"
ITEM = """item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq
242\t"Kolya" (1996)\t1996\tComedy Drama
9\tUnseen\t\t
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "ml-100k.inter").write_text(INTER + EVENTS)
    (folder / "ml-100k.item").write_text(ITEM)
    (folder / "ml-100k.user").write_text("user_id:token\tage:token\n196\t49\n")
    return folder


def test_events_and_items(source: Path, tmp_path: Path) -> None:
    about = convert("recbole", source, tmp_path / "out", Options(0, 0, min_rating=2))
    catalogue = load_catalogue(tmp_path / "out")
    assert (catalogue.items, catalogue.titles) == (("7", "9", "242"), ("", "Unseen", '"Kolya" (1996)'))
    assert catalogue.texts == ("", "", "Comedy Drama")
    assert load_interactions(tmp_path / "out", 3).frame().rows() == [("196", 0, 881250900), ("196", 2, 881250949)]
    assert about["rules"][-1] == "items with events that ml-100k.item does not describe: 1"
    assert about["dropped"]["below minimum rating"] == 1


def test_a_split_that_is_given_and_times_in_parts_of_seconds(source: Path, tmp_path: Path) -> None:
    (source / "ml-100k.inter").unlink()
    for part, row in {"train": "1\ta\t1.5", "valid": "1\tb\t2", "test": "1\tc\t2\n1\td\t1.25"}.items():
        (source / f"ml-100k.{part}.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\n{row}\n")
    (source / "ml-100k.item").unlink()
    convert("recbole", source, tmp_path / "out", Options())
    split = load_interactions(tmp_path / "out", 4).split(given=True)
    assert (split.train_items.tolist(), split.validation.items.tolist()) == ([0], [1])
    assert sorted(split.test.items.tolist()) == [2, 3]


def test_without_times_nothing_has_an_order(source: Path, tmp_path: Path) -> None:
    (source / "ml-100k.inter").write_text("user_id:token\titem_id:token\n1\t242\n1\t9\n")
    assert not convert("recbole", source, tmp_path / "out", Options(0, 0))["timed"]
    assert convert("recbole", source, tmp_path / "again", Options(0, 0, in_order=True))["timed"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("ml-100k.inter", INTER + "1\t2\tx\t3\n", r"ml-100k.inter row 1: rating is 'x', not a number"),
        ("ml-100k.inter", INTER + "1\t\t2\t3\n", r"ml-100k.inter row 1: item is empty"),
        ("ml-100k.inter", "user_id\titem_id:token\n1\t2\n", r"its header has 'user_id', not NAME:KIND"),
        ("ml-100k.inter", "user_id:token\tsong:token\n1\t2\n", r"has no field 'item_id' \(it has user_id, song\)"),
        ("other.inter", INTER, r"has ml-100k.inter, other.inter: one dataset goes into one folder"),
        ("ml-100k.item", "item_id:token\n1\n1\n", r"ml-100k.item names item '1' more than once"),
    ],
)
def test_malformed_files_are_refused(source: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    (source / file).write_text(text)
    with pytest.raises(DataError, match=message):
        convert("recbole", source, tmp_path / "out", Options(0, 0))
