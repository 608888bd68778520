"""Reads tables of your own: events as CSV or parquet and, if there are any, items, pictures and features."""

from pathlib import Path

import polars as pl

from tessera.common.datasets.raw import NAME, NUMBER, WHOLE, Options, RawDataset, read_features, read_items, read_rows
from tessera.common.errors import DataError


def read_tables(source: Path, options: Options) -> RawDataset:
    """Read events.{csv,parquet}, items.{csv,parquet} and `<modality>_features.npy` of a folder, or one events file.

    Events have a user and an item, and may have a timestamp (a whole number, a date or ISO 8601) and a rating. Without
    timestamps the order of the rows counts. Items have item, and may have title, text and image (a path below the
    folder). Raises `DataError` that names file, row and column.
    """
    folder = source if source.is_dir() else source.parent
    path = _table(source, "events") if source.is_dir() else source
    if path is None:
        raise DataError(f"{source} has no events.csv or events.parquet")
    wanted = {options.user_column: NAME, options.item_column: NAME}
    optional = {options.rating_column: NUMBER, options.timestamp_column: NAME}
    named = optional.keys() - {"rating", "timestamp"}
    events = read_rows(path, wanted | {name: optional[name] for name in named}, optional)
    names = dict(zip((*wanted, *optional), ("user", "item", "rating", "timestamp"), strict=True))
    events = events.rename({old: new for old, new in names.items() if old in events.columns})
    rules: tuple[str, ...] = ()
    if "timestamp" in events.columns:
        events = events.with_columns(_timestamps(path, options.timestamp_column, events["timestamp"]))
    else:
        events = events.with_row_index("timestamp").with_columns(pl.col("timestamp").cast(WHOLE))
        rules = ("without timestamps, events count in the order of their rows",)
    return RawDataset(events, folder, source.resolve().name, _items(folder), read_features(folder, {}), rules)


def _items(folder: Path) -> pl.DataFrame | None:
    path = _table(folder, "items")
    return None if path is None else read_items(path, {name: name for name in ("item", "title", "text", "image")})


def _table(folder: Path, name: str) -> Path | None:
    """The CSV or parquet file of a name. Raises `DataError` when there are both."""
    found = [path for suffix in ("csv", "parquet") if (path := folder / f"{name}.{suffix}").exists()]
    if len(found) > 1:
        raise DataError(f"{folder} has {found[0].name} and {found[1].name}: leave one")
    return found[0] if found else None


def _timestamps(path: Path, name: str, column: pl.Series) -> pl.Series:
    """Whole numbers as they are, dates and times as microseconds. Raises `DataError` that names the row."""
    numbers = column.cast(WHOLE, strict=False)
    if not numbers.null_count():
        return numbers
    times = _parsed(column) if numbers.null_count() == len(column) else None
    bad = numbers.is_null() if times is None else times.is_null()
    if times is None or bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(f"{path} row {row + 1}: {name} {column[row]!r} is neither a whole number nor an ISO 8601 time")
    return times.dt.epoch("us").alias(column.name)


def _parsed(column: pl.Series) -> pl.Series:
    """ISO 8601 dates and times; null where there is none."""
    try:
        return column.str.to_datetime(time_unit="us", strict=False)
    except pl.exceptions.PolarsError:
        return pl.Series([None] * len(column), dtype=pl.Datetime)
