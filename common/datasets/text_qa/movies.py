"""Reads what is asked about in words: movies, how they were received, and what people liked in turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tessera.common.datasets.movielens import read_movielens
from tessera.common.datasets.raw import NAME, NUMBER, WHOLE, Options, read_rows
from tessera.common.errors import DataError

MIN_RATINGS = 20
"""Fewer ratings: a movie that nobody knows is not asked about."""
LIKED = 4.0
LONGEST_TITLE = 40


@dataclass(frozen=True)
class Movie:
    """One movie; `rating` is the mean of all people's, `known` how many rated it."""

    id: str
    title: str
    year: int
    genres: tuple[str, ...]
    overview: str
    rating: float
    known: int

    @property
    def named(self) -> str:
        """The title with the year."""
        return f"{self.title} ({self.year})"

    @property
    def told(self) -> str:
        """The first sentence of the overview."""
        return self.overview.split(". ")[0].rstrip(".") + "."


def read_movies(source: Path) -> dict[str, Movie]:
    """The movies that people know, by id, from movies.csv, overviews.csv and ratings.csv. Raises `DataError`."""
    frame = read_rows(source / "movies.csv", {"movieId": NAME, "title": NAME, "genres": NAME})
    told = read_movielens(source, Options()).items
    if told is None:
        raise DataError(f"{source / 'movies.csv'} does not exist")
    told = told.select(pl.col("item").alias("movieId"), pl.col("text").alias("overview"))
    rated = (
        read_rows(source / "ratings.csv", {"movieId": NAME, "rating": NUMBER})
        .group_by("movieId")
        .agg(pl.col("rating").sort().mean(), pl.len().alias("known"))
        .filter(pl.col("known") >= MIN_RATINGS)
    )
    joined = frame.join(told, on="movieId").join(rated, on="movieId").sort("movieId")
    found = {}
    for id, whole, genres, overview, rating, known in joined.iter_rows():
        title, _, year = whole.strip().rpartition(" (")
        if year[:4].isdigit() and len(title) <= LONGEST_TITLE and overview.strip() and "(no" not in genres:
            found[id] = Movie(id, _plain(title), int(year[:4]), tuple(genres.split("|")), overview, rating, known)
    if len(found) < 100:
        raise DataError(f"{source} has {len(found)} movies with overview and {MIN_RATINGS} ratings: 100 are needed")
    return found


def _plain(title: str) -> str:
    """A title in its usual order: The Matrix, not Matrix, The."""
    for article in ("The", "A", "An"):
        if title.endswith(f", {article}"):
            return f"{article} {title.removesuffix(f', {article}')}"
    return title


def read_histories(source: Path, movies: Mapping[str, Movie]) -> dict[str, list[str]]:
    """The movies that each person liked, oldest first, by the person's id."""
    rows = read_rows(source / "ratings.csv", {"userId": NAME, "movieId": NAME, "rating": NUMBER, "timestamp": WHOLE})
    liked = rows.filter((pl.col("rating") >= LIKED) & pl.col("movieId").is_in(list(movies)))
    ordered = liked.sort("userId", "timestamp", "movieId")
    return {str(key[0]): part["movieId"].to_list() for key, part in ordered.group_by("userId", maintain_order=True)}
