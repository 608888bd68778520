"""Reads MovieLens in any of its releases: ratings and, where there are any, titles, overviews, posters and features."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tessera.common.data.csv_files import CsvFile
from tessera.common.data.pictures import pictures_in
from tessera.common.datasets.raw import (
    NAME,
    NUMBER,
    WHOLE,
    Options,
    RawDataset,
    read_features,
    read_items,
    read_rows,
    typed,
)
from tessera.common.errors import DataError

ENCODERS = {"image": "MobileNetV1 (ImageNet)", "text": "all-MiniLM-L6-v2"}
"""What computed the features that ml-latest-small's README describes; encoders.json overrides it."""
EVENT_COLUMNS = {"user": NAME, "item": NAME, "rating": NUMBER, "timestamp": WHOLE}
NAMES = {
    "user": ("userId", "user_id", "userid", "user"),
    "item": ("movieId", "movie_id", "movieid", "item_id", "item"),
    "rating": ("rating",),
    "timestamp": ("timestamp", "unix_timestamp"),
    "title": ("title", "movie_title"),
    "text": ("overview",),
}
"""What columns are called in GroupLens' own .csv and in those that others have made of the older releases."""


@dataclass(frozen=True)
class Old:
    """A release without headers: the file of ratings, that of movies, and what stands between fields."""

    ratings: str
    movies: str
    separator: str
    movies_separator: str


GENRES = (
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""What the last fields of a line of 100K's u.item are about, 1 where a movie is of the genre."""
NO_GENRES = "(no genres listed)"
RELEASES = (Old("ratings.dat", "movies.dat", "::", "::"), Old("u.data", "u.item", "\t", "|"))
"""1M and 10M; 100K."""


def read_movielens(source: Path, options: Options) -> RawDataset:
    """Read a MovieLens folder.

    latest, 20M, 25M, 32M   ratings.csv userId, movieId, rating, timestamp; movies.csv movieId, title
    1M, 10M                 ratings.dat, movies.dat, with :: between fields
    100K                    u.data, u.item; or as ratings.csv and movies.csv with user_id, movie_id or item_id
    any                     overviews.csv movieId, overview; posters/ID.jpg, or of another kind;
                            {image,text}_features.npy with {image,text}_ids.npy

    Only the ratings have to be there. Titles are read as UTF-8 or else latin-1, as the older releases have them. With
    `options.genres` a movie's text begins with its genres. Raises `DataError` that names the file and the row.
    """
    if not source.is_dir():
        raise DataError(f"{source} is no folder: name the one that holds ratings.csv, ratings.dat or u.data")
    rules: list[str] = []
    old = next((one for one in RELEASES if (source / one.ratings).exists()), None)
    if (source / "ratings.csv").exists():
        path = source / "ratings.csv"
        names = _called(path, ("user", "item", "rating", "timestamp"))
        read = read_rows(path, {names[name]: EVENT_COLUMNS[name] for name in names})
        events, movies = read.rename({names[name]: name for name in names}), _movies(source, options.genres)
    elif old:
        events = _ratings(source / old.ratings, old.separator)
        movies, rules = _old_movies(source / old.movies, old.movies_separator, options.genres)
    else:
        raise DataError(f"{source} has no ratings.csv (latest, 20M to 32M), ratings.dat (1M, 10M) or u.data (100K)")
    if options.genres and (movies is None or not movies["text"].str.len_chars().sum()):
        raise DataError(f"{source} does not say the genres of any movie: leave --genres out")
    posters, passed = pictures_in(source / "posters")
    items = None if movies is None else _shown(source, movies, posters)
    features = read_features(source, ENCODERS)
    return RawDataset(events, source, source.resolve().name, items, features, (*rules, *passed))


def _called(path: Path, wanted: tuple[str, ...]) -> dict[str, str]:
    """What a file calls its columns. Raises `DataError` for one that it lacks."""
    there = CsvFile.open(path).columns
    found = {name: next((one for one in NAMES[name] if one in there), "") for name in wanted}
    if lacking := [name for name, column in found.items() if not column]:
        raise DataError(f"{path} has no column {NAMES[lacking[0]][0]!r} (it has {', '.join(there)})")
    return found


def _movies(source: Path, genres: bool) -> pl.DataFrame | None:
    """The movies of movies.csv with their titles and, as texts, their genres where they are asked for, if there is one."""
    path = source / "movies.csv"
    if not path.exists():
        return None
    movies = read_items(path, _called(path, ("item", "title")) | ({"text": "genres"} if genres else {}))
    return movies.with_columns(pl.col("text").map_elements(_listed, return_dtype=pl.String))


def _listed(genres: str) -> str:
    """Genres as a sentence, from what is between bars."""
    return "" if genres in ("", NO_GENRES) else genres.replace("|", ", ") + "."


def _ratings(path: Path, separator: str) -> pl.DataFrame:
    """The ratings of a file without header: user, movie, rating, time."""
    step = len(separator)  # with "::" each second field is between two colons
    try:
        cells = pl.read_csv(
            path, has_header=False, separator=separator[0], infer_schema=False, quote_char=None, glob=False
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} is not a readable table: {str(error).splitlines()[0]}") from None
    if cells.width != 4 * step - (step - 1):
        raise DataError(f"{path} has lines of another form than {separator.join(EVENT_COLUMNS)}")
    named = cells.select(pl.nth(place * step).alias(name) for place, name in enumerate(EVENT_COLUMNS))
    return typed(path, named.lazy(), EVENT_COLUMNS)


def _old_movies(path: Path, separator: str, genres: bool) -> tuple[pl.DataFrame | None, list[str]]:
    """The movies of a file without header, id and title first and genres last, and what to say about its letters."""
    if not path.exists():
        return None, []
    content, rules = path.read_bytes(), []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text, rules = content.decode("latin-1"), [f"{path.name} is in latin-1"]
    rows = [line.rstrip("\r").split(separator) for line in text.split("\n") if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or not row[0]:
            raise DataError(
                f"{path} line {number} does not begin with a movie's id and title, {separator} between them"
            )
    items = pl.DataFrame({"item": [row[0] for row in rows], "title": [row[1] for row in rows]})
    if items["item"].is_duplicated().any():
        raise DataError(f"{path} names item {items['item'].filter(items['item'].is_duplicated())[0]!r} more than once")
    texts = [_listed(_old_genres(row)) if genres else "" for row in rows]
    return items.with_columns(text=pl.Series(texts, dtype=pl.String), image=pl.lit("")), rules


def _old_genres(row: list[str]) -> str:
    """The genres of a movie with bars between: named in the third field, or 1 in as many last fields as there are genres."""
    if len(row) <= len(GENRES):
        return row[2] if len(row) > 2 else ""
    return "|".join(genre for genre, flag in zip(GENRES, row[-len(GENRES) :], strict=True) if flag == "1")


def _shown(source: Path, movies: pl.DataFrame, posters: dict[str, str]) -> pl.DataFrame:
    """Movies with what there is of overviews and posters."""
    paths = {movie: f"posters/{name}" for movie, name in posters.items()}
    image = pl.col("item").replace_strict(paths, default="", return_dtype=pl.String)
    movies = movies.with_columns(image.alias("image"))
    path = source / "overviews.csv"
    if not path.exists():
        return movies
    overviews = read_items(path, _called(path, ("item", "text")))
    told = overviews.select("item", overview="text")
    joined = movies.join(told, on="item", how="left", maintain_order="left").with_columns(
        pl.col("overview").fill_null("")
    )
    text = pl.concat_str("text", "overview", separator=" ").str.strip_chars()
    return joined.with_columns(text.alias("text")).select(movies.columns)
