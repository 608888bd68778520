"""MovieLens in each of its releases, as GroupLens publishes them and as CSV made of the older ones."""

from pathlib import Path

import pytest

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert
from tessera.common.datasets.movielens import GENRES
from tessera.common.errors import DataError

RATINGS = [(1, 10, 5, 300), (1, 30, 3, 100), (2, 10, 4, 200)]
TITLES = {10: "Amélie (2001)", 30: "Heat: Part 2 (1995)"}


def lines(separator: str, rows: list[tuple]) -> str:
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def release(name: str, folder: Path) -> None:
    movies = [(movie, title, "Drama|Crime") for movie, title in TITLES.items()]
    if name in ("1M", "10M"):
        (folder / "ratings.dat").write_text(lines("::", RATINGS))
        (folder / "movies.dat").write_text(lines("::", movies), encoding="latin-1" if name == "1M" else "utf-8")
    elif name == "100K":
        (folder / "u.data").write_text(lines("\t", RATINGS))
        flags = [int(genre in ("Drama", "Crime")) for genre in ("unknown", *GENRES)]
        rows = [(movie, title, "01-Jan-1995", "", "http://us.imdb.com/M", *flags) for movie, title in TITLES.items()]
        (folder / "u.item").write_text(lines("|", rows), encoding="latin-1")
    else:
        user, movie = {
            "latest": ("userId", "movieId"),
            "snake": ("user_id", "movie_id"),
            "items": ("user_id", "item_id"),
        }[name]
        mark = "\ufeff" if name == "snake" else ""
        (folder / "ratings.csv").write_text(f"{mark}{user},{movie},rating,timestamp\n" + lines(",", RATINGS))
        (folder / "movies.csv").write_text(f"{movie},title,genres\n" + lines(",", movies))


@pytest.mark.parametrize("name", ["100K", "1M", "10M", "latest", "snake", "items"])
def test_releases(tmp_path: Path, name: str) -> None:
    release(name, tmp_path)
    about = convert("movielens", tmp_path, tmp_path / "out", Options(0, 0, min_rating=3.5))
    catalogue = load_catalogue(tmp_path / "out")
    assert (catalogue.items, catalogue.titles) == (("10", "30"), tuple(TITLES.values()))
    assert load_interactions(tmp_path / "out", 2).frame().rows() == [("1", 0, 300), ("2", 0, 200)]
    assert any("latin-1" in rule for rule in about["rules"]) == (name in ("100K", "1M"))


@pytest.mark.parametrize("name", ["100K", "1M", "latest"])
def test_texts_begin_with_genres_where_that_is_asked_for(tmp_path: Path, name: str) -> None:
    release(name, tmp_path)
    (tmp_path / "overviews.csv").write_text("movieId,overview\n30,Two men.\n")
    convert("movielens", tmp_path, tmp_path / "out", Options(0, 0, genres=True))
    genres = "Crime, Drama." if name == "100K" else "Drama, Crime."
    assert load_catalogue(tmp_path / "out").texts == (genres, f"{genres} Two men.")


def test_genres_that_are_not_there_are_refused(tmp_path: Path) -> None:
    release("latest", tmp_path)
    (tmp_path / "movies.csv").write_text("movieId,title\n" + lines(",", list(TITLES.items())))
    with pytest.raises(DataError, match="does not say the genres of any movie: leave --genres out"):
        convert("movielens", tmp_path, tmp_path / "out", Options(0, 0, genres=True))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("u.data", "1\t10\t5\t300\n1\t30\tgood\t100\n", r"u.data row 2: rating is 'good', not a number"),
        ("u.data", "1\t10\t5\n", r"u.data has lines of another form than user\titem\trating\ttimestamp"),
        ("ratings.dat", "1::10::5::300\n1::30::5::\n", r"ratings.dat row 2: timestamp is empty"),
        ("ratings.csv", "who,movieId,rating,timestamp\n", r"ratings.csv has no column 'userId' \(it has who, movieId"),
        ("u.info", "", r"has no ratings.csv \(latest, 20M to 32M\), ratings.dat \(1M, 10M\) or u.data \(100K\)"),
    ],
)
def test_malformed_releases_are_refused(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        convert("movielens", tmp_path, tmp_path / "out")
