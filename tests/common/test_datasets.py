"""Filters, and the converters on files that the tests write."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tessera.common.data.catalogue import Catalogue, load_catalogue
from tessera.common.data.interactions import TIES, Interactions, load_interactions
from tessera.common.datasets import Options, convert, describe
from tessera.common.datasets.dataset_folder import replacing
from tessera.common.datasets.preprocess import first_events, k_core
from tessera.common.errors import ConfigError, DataError
from tessera.common.utils.atomic_files import read_json

RATINGS = """userId,movieId,rating,timestamp
1,10,4.0,30
1,2,5.0,30
1,100,1.0,10
7,2,3.5,5
7,10,2.0,6
7,33,2.0,7
"""
MOVIES = 'movieId,title,genres\n2,"Two, the (1995)",Drama\n10,Ten,Drama\n33,,\n100,Hundred,\n555,Unseen,\n'


def options(**given: Any) -> Options:
    return Options(**{"min_user_events": 0, "min_item_events": 0, **given})


def load(folder: Path) -> tuple[Catalogue, Interactions]:
    catalogue = load_catalogue(folder)
    return catalogue, load_interactions(folder, len(catalogue))


def events_of(folder: Path) -> dict[str, list[str]]:
    """Each user's items, by id, in order."""
    catalogue, interactions = load(folder)
    frame = interactions.frame().group_by("user", maintain_order=True).agg("item")
    return {user: [catalogue.items[item] for item in items] for user, items in frame.rows()}


@pytest.fixture
def movies(tmp_path: Path) -> Path:
    source = tmp_path / "my-movies"
    (source / "posters").mkdir(parents=True)
    (source / "ratings.csv").write_text(RATINGS)
    (source / "movies.csv").write_text(MOVIES)
    (source / "overviews.csv").write_text('movieId,tmdbId,overview\n10,1,"A film, of ""ten""."\n2,2,\n')
    Image.new("RGB", (12, 18), "red").save(source / "posters" / "10.jpg")
    np.save(source / "image_features.npy", np.array([[1, 2], [3, 4]], dtype=np.float16))
    np.save(source / "image_ids.npy", np.array([100, 2], dtype=np.int32))
    return source


CELLS = st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=60)


@given(CELLS, st.integers(0, 4), st.integers(0, 4))
def test_the_k_core_is_the_largest_set_in_which_all_have_enough(
    cells: set[tuple[int, int]], users: int, items: int
) -> None:
    events = pl.DataFrame(sorted(cells), schema={"user": pl.Int64, "item": pl.Int64}, orient="row")
    kept = k_core(events, users, items)
    assert k_core(kept, users, items).equals(kept)
    assert all(count >= users for count in kept["user"].value_counts()["count"])
    assert all(count >= items for count in kept["item"].value_counts()["count"])
    assert set(kept.rows()) == one_at_a_time(cells, users, items)


def one_at_a_time(cells: set[tuple[int, int]], users: int, items: int) -> set[tuple[int, int]]:
    """The naive twin: drop one event that breaks a rule, and look again."""
    cells = set(cells)
    while True:
        bad = next((c for c in cells if sum(u == c[0] for u, _ in cells) < users), None)
        bad = bad or next((c for c in cells if sum(i == c[1] for _, i in cells) < items), None)
        if bad is None:
            return cells
        cells.remove(bad)


def test_the_first_event_is_the_earliest_and_of_equals_the_first_row() -> None:
    columns = {"user": ["u"] * 4, "item": ["a", "a", "b", "b"], "timestamp": [2, 1, 5, 5], "rating": [1, 2, 3, 4]}
    assert first_events(pl.DataFrame(columns))["rating"].to_list() == [2, 3]


def test_movielens_with_all_its_extras(movies: Path, tmp_path: Path) -> None:
    about = convert("movielens", movies, tmp_path / "out", options(images=True))
    catalogue, _ = load(tmp_path / "out")
    assert catalogue.items == ("2", "10", "33", "100", "555")
    assert catalogue.titles == ("Two, the (1995)", "Ten", "", "Hundred", "Unseen")
    assert catalogue.texts == ("", 'A film, of "ten".', "", "", "")
    assert catalogue.images == ("", "images/000001.jpg", "", "", "")
    assert Image.open(tmp_path / "out" / catalogue.images[1]).size == (12, 18)
    image = catalogue.features["image"]
    assert image.present.tolist() == [True, False, False, True, False]
    np.testing.assert_array_equal(image.values[[0, 3]], [[3, 4], [1, 2]])
    assert events_of(tmp_path / "out") == {"1": ["100", "10", "2"], "7": ["2", "10", "33"]}
    assert about["counts"] == {"users": 2, "items": 5, "interactions": 6}
    assert about["features"]["image"] == {
        "encoder": "MobileNetV1 (ImageNet)",
        "dim": 2,
        "dtype": "float16",
        "sha256": image.sha256,
        "missing": 3,
    }
    assert about == read_json(tmp_path / "out" / "dataset.json")
    assert about["source"] == "my-movies"
    assert str(tmp_path) not in (tmp_path / "out" / "dataset.json").read_text()


def test_movielens_without_extras(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (source / "ratings.csv").write_text(RATINGS)
    convert("movielens", source, tmp_path / "out", options())
    catalogue, _ = load(tmp_path / "out")
    assert catalogue.items == ("2", "10", "33", "100")
    assert not catalogue.features


def test_filters_rating_first_then_core(movies: Path, tmp_path: Path) -> None:
    about = convert("movielens", movies, tmp_path / "out", options(min_rating=2, min_item_events=2, min_user_events=2))
    assert events_of(tmp_path / "out") == {"1": ["10", "2"], "7": ["2", "10"]}
    assert about["dropped"] == {"below minimum rating": 1, "repeated": 0, "too few events": 1}
    assert about["filters"] == {"min_rating": 2.0, "min_item_events": 2, "min_user_events": 2}
    assert about["counts"]["items"] == 2


def test_nothing_left_is_an_error(movies: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 6 interactions is left.*min_item_events 3.*lower them"):
        convert("movielens", movies, tmp_path / "out", options(min_item_events=3))
    assert not (tmp_path / "out").exists()


def test_encoders_json_says_what_computed_features(movies: Path, tmp_path: Path) -> None:
    (movies / "encoders.json").write_text('{"image": "my-net"}')
    about = convert("movielens", movies, tmp_path / "out", options())
    assert about["features"]["image"]["encoder"] == "my-net"


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("ratings.csv", "timestamp", "time", r"ratings.csv has no column 'timestamp'"),
        ("ratings.csv", "7,2,3.5,5", "7,2,3.5,noon", r"ratings.csv row 4: timestamp is 'noon', not a whole number"),
        ("ratings.csv", "7,2,3.5,5", "7,2,good,5", r"ratings.csv row 4: rating is 'good', not a number"),
        ("ratings.csv", "7,2,3.5,5", "7,2,nan,5", r"ratings.csv row 4: rating is 'nan', not a number"),
        ("ratings.csv", "7,2,3.5,5", "7,,3.5,5", r"ratings.csv row 4: movieId is empty"),
        ("ratings.csv", "7,2,3.5,5", "7,2,3.5", r"ratings.csv row 4: timestamp is empty"),
        ("ratings.csv", "7,2,3.5,5", "7,2,3.5,5,6", r"ratings.csv line 5 has 5 fields, not 4"),
        ("ratings.csv", "7,2,3.5,5", "7,999,3.5,5", r"user '7' has an event with item '999'.*lack"),
        ("movies.csv", "10,Ten", "2,Ten", r"movies.csv names item '2' more than once"),
        ("movies.csv", "100,Hundred,\n", "", r"item '100'"),
    ],
)
def test_malformed_movielens_is_refused(
    movies: Path, tmp_path: Path, file: str, old: str, new: str, message: str
) -> None:
    spoil(movies / file, old, new)
    with pytest.raises(DataError, match=message):
        convert("movielens", movies, tmp_path / "out", options())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my-movies"]


KU = "userID,itemID,rating,timestamp,split_label\n0,2,1.0,300,2\n0,0,1.0,400,0\n0,1,1.0,100,1\n5,1,1.0,7,0\n"


@pytest.fixture
def ku(tmp_path: Path) -> Path:
    source = tmp_path / "ku"
    source.mkdir()
    (source / "inter.csv").write_text(KU)
    for name in ("image", "text"):
        np.save(source / f"{name}_features.npy", np.arange(8, dtype=np.float16).reshape(4, 2))
    return source


def test_fedvlr_keeps_the_given_split_and_all_items(ku: Path, tmp_path: Path) -> None:
    about = convert("fedvlr", ku, tmp_path / "out", Options())
    catalogue, interactions = load(tmp_path / "out")
    assert catalogue.items == ("0", "1", "2", "3")
    split = interactions.split(given=True)
    assert (split.train_items.tolist(), split.validation.first().tolist(), split.test.first().tolist()) == (
        [0, 1],
        [1, -1],
        [2, -1],
    )
    assert about["filters"] == {}
    assert describe(tmp_path / "out")["split"] == {
        "rule": "given",
        "train": 2,
        "validation": 1,
        "test": 1,
        "cold_targets": 1.0,
        "ties": TIES,
        "tied": {"validation": 0.0, "test": 0.0},
    }


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("300,2", "300,3", r"inter.csv row 1: split_label is 3, not 0, 1 or 2"),
        ("5,1,1.0", "5,4,1.0", r"user '5' has an event with item '4'"),
        ("5,1,1.0,7,0", "0,1,1.0,7,0", r"user 0 and item 1 stand in two parts"),
        ("5,1,1.0,7,0", "5,x,1.0,7,0", r"inter.csv row 4: itemID is 'x'"),
    ],
)
def test_malformed_fedvlr_is_refused(ku: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    spoil(ku / "inter.csv", old, new)
    with pytest.raises(DataError, match=message):
        convert("fedvlr", ku, tmp_path / "out", Options())


def test_fedvlr_features_must_agree(ku: Path, tmp_path: Path) -> None:
    np.save(ku / "text_features.npy", np.zeros((3, 2), dtype=np.float32))
    with pytest.raises(DataError, match=r"'image_features.npy': 4, 'text_features.npy': 3"):
        convert("fedvlr", ku, tmp_path / "out", Options())


@pytest.mark.parametrize("as_folder", [True, False])
def test_sequences(tmp_path: Path, as_folder: bool) -> None:
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / "Beauty.txt"
    file.write_text("1 5 3 10\n2 10 5 5\n")
    about = convert("sequences", tmp_path / "in" if as_folder else file, tmp_path / "out", options())
    assert events_of(tmp_path / "out") == {"1": ["5", "3", "10"], "2": ["10", "5"]}
    assert load(tmp_path / "out")[0].items == ("3", "5", "10")
    assert about["dropped"]["repeated"] == 1
    assert about["source"] == ("in" if as_folder else "Beauty.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 5\n\n2 3\n", r"Beauty.txt line 2 is not 'user item item ...': it is empty"),
        ("1 5\n2\n", r"Beauty.txt line 2"),
        ("1 5\n1 3\n", r"Beauty.txt line 2: user '1' has a line already"),
        ("", r"none of the 0 interactions"),
    ],
)
def test_malformed_sequences_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "Beauty.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        convert("sequences", tmp_path / "Beauty.txt", tmp_path / "out", options())


def test_ratings_are_needed_for_a_minimum(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n1,5\n1,3\n")
    with pytest.raises(DataError, match=r"min_rating 2.0 needs ratings"):
        convert("table", tmp_path / "log.csv", tmp_path / "out", options(min_rating=2.0))
    with pytest.raises(
        DataError, match=r"min_rating has no effect on .* sequences: .*; it is for movielens, amazon, recbole, table"
    ):
        convert("sequences", tmp_path / "log.csv", tmp_path / "out", options(min_rating=2.0))


def test_what_is_not_there_or_not_known(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no kind of data 'netflix'; .*known are amazon, aspects-shop, fedvlr, movielens"
    ):
        convert("netflix", tmp_path, tmp_path / "out", options())
    with pytest.raises(DataError, match="does not exist"):
        convert("movielens", tmp_path / "nowhere", tmp_path / "out", options())
    with pytest.raises(DataError, match=r"has no ratings.csv"):
        convert("movielens", tmp_path, tmp_path / "out", options())


def test_a_dataset_is_replaced_only_when_asked_to(ku: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("fedvlr", ku, out, Options())
    before = sorted(out.rglob("*"))
    with pytest.raises(DataError, match="pass --overwrite"):
        convert("fedvlr", ku, out, Options())
    convert("fedvlr", ku, out, Options(), overwrite=True)
    spoil(ku / "inter.csv", "300,2", "300,3")
    with pytest.raises(DataError, match="split_label"):
        convert("fedvlr", ku, out, Options(), overwrite=True)
    assert sorted(out.rglob("*")) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ku", "out"]


def test_a_folder_that_is_no_dataset_is_never_replaced(ku: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="not a dataset"):
        convert("fedvlr", ku, tmp_path / "out", Options(), overwrite=True)
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_a_dataset_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "out") as folder:
            (folder / "mine").touch()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").touch()

    with pytest.raises(DataError, match="out cannot be written"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_an_empty_folder_may_be_filled(ku: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    convert("fedvlr", ku, Path(), Options())
    assert describe(tmp_path / "out")["name"] == "out"


def test_describe_notices_other_features(ku: Path, tmp_path: Path) -> None:
    convert("fedvlr", ku, tmp_path / "out", Options())
    image = tmp_path / "out" / "features" / "image.safetensors"
    np.save(ku / "image_features.npy", np.ones((4, 2), dtype=np.float32))
    convert("fedvlr", ku, tmp_path / "other", Options())
    image.write_bytes((tmp_path / "other" / "features" / "image.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"'image'.*are not those of dataset.json"):
        describe(tmp_path / "out")


def test_describe_needs_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset.json does not exist"):
        describe(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="format 99, not 1"):
        describe(tmp_path)
