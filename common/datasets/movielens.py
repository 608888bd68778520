"""Reads MovieLens: ratings.csv and, where there are any, titles, overviews, posters and features."""

from pathlib import Path

import polars as pl

from tessera.common.datasets.raw import NAME, NUMBER, WHOLE, Options, RawDataset, read_features, read_items, read_rows
from tessera.common.errors import DataError

ENCODERS = {"image": "MobileNetV1 (ImageNet)", "text": "all-MiniLM-L6-v2"}
"""What computed the features that ml-latest-small's README describes; encoders.json overrides it."""


def read_movielens(source: Path, _: Options) -> RawDataset:
    """Read a MovieLens folder.

    ratings.csv userId, movieId, rating, timestamp; movies.csv movieId, title; overviews.csv movieId, overview;
    posters/<movieId>.jpg; {image,text}_features.npy with {image,text}_ids.npy. Only ratings.csv has to be there.
    Raises `DataError` that names the file and the row.
    """
    path = source / "ratings.csv"
    if not path.exists() and (source / "ratings.dat").exists():
        raise DataError(
            f"{source} has the old ratings.dat: make a ratings.csv of it, with the header "
            "userId,movieId,rating,timestamp, by sed 's/::/,/g' ratings.dat"
        )
    ratings = read_rows(path, {"userId": NAME, "movieId": NAME, "rating": NUMBER, "timestamp": WHOLE})
    events = ratings.rename({"userId": "user", "movieId": "item"})
    return RawDataset(events, source, source.resolve().name, _items(source), read_features(source, ENCODERS))


def _items(source: Path) -> pl.DataFrame | None:
    """Titles, overviews and posters of the movies in movies.csv, where there is one."""
    if not (source / "movies.csv").exists():
        return None
    movies = read_items(source / "movies.csv", {"item": "movieId", "title": "title"})
    posters = {path.stem: f"posters/{path.name}" for path in (source / "posters").glob("*.jpg")}
    image = pl.col("item").replace_strict(posters, default="", return_dtype=pl.String)
    movies = movies.with_columns(image.alias("image"))
    if not (source / "overviews.csv").exists():
        return movies
    overviews = read_items(source / "overviews.csv", {"item": "movieId", "text": "overview"})
    joined = movies.drop("text").join(overviews.select("item", "text"), on="item", how="left", maintain_order="left")
    return joined.with_columns(pl.col("text").fill_null("")).select(movies.columns)
