"""Reads tables of your own: events as CSV or parquet and, if there are any, items, pictures and features."""

from pathlib import Path

import polars as pl

from tessera.common.data.csv_files import CsvFile
from tessera.common.data.interactions import Part
from tessera.common.datasets.raw import NAME, NUMBER, Options, RawDataset, read_features, read_items, read_rows, untimed
from tessera.common.datasets.times import whole_times
from tessera.common.errors import DataError

SPLIT = "split"
PARTS = {
    "train": Part.TRAIN, "training": Part.TRAIN,
    "validation": Part.VALIDATION, "valid": Part.VALIDATION, "val": Part.VALIDATION,
    "test": Part.TEST,
}  # fmt: skip
"""What the column `split` may say."""
ITEM_COLUMNS = ("item", "title", "text", "image")


def read_tables(source: Path, options: Options) -> RawDataset:
    """Read events.{csv,parquet}, items.{csv,parquet} and `<modality>_features.npy` of a folder, or one events file.

    Events have a user and an item, and may have a timestamp (a whole number, a date or ISO 8601), a rating and a split
    (train, validation or test). Items have item, and may have title, text and image (a path of the picture). Raises
    `DataError` that names file, row and column.
    """
    folder = source if source.is_dir() else source.parent
    path = _table(source, "events") if source.is_dir() else source
    if path is None:
        raise DataError(f"{source} has no events.csv or events.parquet")
    events, rules = _events(path, options)
    items_path = _table(folder, "items")
    items = None if items_path is None else _items(items_path, options)
    ids = () if items is None else tuple(items["item"])
    said = [CsvFile.open(one).said() for one in (path, items_path) if one and one.suffix != ".parquet"]
    features = read_features(folder, {}, ids)
    events = events if "timestamp" in events.columns else untimed(events, options)
    return RawDataset(events, folder, source.resolve().name, items, features, (*said, *rules))


def _events(path: Path, options: Options) -> tuple[pl.DataFrame, list[str]]:
    """The events by our names, and what to say about them."""
    wanted = {options.user_column: NAME, options.item_column: NAME}
    optional = {options.rating_column: NUMBER, options.timestamp_column: NAME, SPLIT: NAME}
    names = dict(zip((*wanted, *optional), ("user", "item", "rating", "timestamp", "part"), strict=False))
    if len(names) < 5:
        raise DataError(
            "two of the columns of events are called alike: --user-column, --item-column and others name one each"
        )
    named = optional.keys() - {"rating", "timestamp", SPLIT}
    events = read_rows(path, wanted | {name: optional[name] for name in named}, optional)
    events = events.rename({old: new for old, new in names.items() if old in events.columns})
    if "timestamp" in events.columns:
        events = events.with_columns(whole_times(path, options.timestamp_column, events["timestamp"]))
    elif not options.in_order:
        return _parts(path, events), []
    else:
        return _parts(path, events), ["without timestamps, events count in the order of their rows, as was said"]
    if options.in_order:
        raise DataError(f"{path} has timestamps, which say the order: leave --in-order out")
    return _parts(path, events), []


def _parts(path: Path, events: pl.DataFrame) -> pl.DataFrame:
    """The events with their parts as numbers, where a column `split` says them."""
    if "part" not in events.columns:
        return events
    parts = events["part"].str.strip_chars().str.to_lowercase()
    known = parts.is_in(list(PARTS))
    if not known.all():
        row = int((~known).arg_max() or 0)
        told = "not train, validation or test: write one of them, or call the column something else"
        raise DataError(f"{path} row {row + 1}: {SPLIT} is {events['part'][row]!r}, {told}")
    events = events.with_columns(
        parts.replace_strict({name: int(part) for name, part in PARTS.items()}, return_dtype=pl.UInt8)
    )
    torn = events.filter(pl.col("part").n_unique().over("user", "item") > 1)
    if len(torn):
        raise DataError(
            f"{path}: user {torn['user'][0]!r} and item {torn['item'][0]!r} stand in two parts of the split"
        )
    return events


def _items(path: Path, options: Options) -> pl.DataFrame:
    """The items; their id may be called as it is in the events."""
    columns = {name: getattr(options, f"{name}_column") for name in ITEM_COLUMNS}
    present = (
        pl.scan_parquet(path, glob=False).collect_schema().names()
        if path.suffix == ".parquet"
        else CsvFile.open(path).columns
    )
    if columns["item"] not in present and "item" in present:
        columns["item"] = "item"
    for name in ("title", "text", "image"):
        if columns[name] != name and columns[name] not in present:
            raise DataError(f"{path} has no column {columns[name]!r} (it has {', '.join(present)})")
    return read_items(path, columns)


def _table(folder: Path, name: str) -> Path | None:
    """The CSV or parquet file of a name. Raises `DataError` when there are both."""
    found = [path for suffix in ("csv", "parquet") if (path := folder / f"{name}.{suffix}").exists()]
    if len(found) > 1:
        raise DataError(f"{folder} has {found[0].name} and {found[1].name}: leave one")
    return found[0] if found else None
