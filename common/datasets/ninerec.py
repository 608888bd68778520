"""Reads NineRec as its authors publish it: pairs of users and items, titles in Chinese and English, covers."""

import csv
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from tessera.common.data.pictures import pictures_in
from tessera.common.datasets.published_counts import MISSING_TITLE, UNTITLED
from tessera.common.datasets.raw import NAME, NO_ITEMS, WHOLE, Options, RawDataset, read_features, untimed
from tessera.common.datasets.sequences import read_sequences
from tessera.common.errors import DataError

PAIRS, BEHAVIOUR, ITEMS, COVERS = "*_pair.csv", "*_behaviour.tsv", "*_item.csv", "*_cover"
HEADERS = {
    "user": ("user", "user_id", "userid"),
    "item": ("item", "item_id", "itemid", "video_id"),
    "timestamp": ("timestamp", "time"),
    "chinese": ("title", "title_zh", "title_cn", "chinese", "text_in_chinese"),
    "english": ("title_en", "english", "text_in_english"),
}
"""What a column may be called where there is a header; case and blanks do not matter."""


def read_ninerec(source: Path, options: Options) -> RawDataset:
    """Read the folder of one of NineRec's datasets, such as KU or Bili_Food (X stands for its name).

    X_pair.csv        user, item, timestamp; or item, user, timestamp, as the authors' own script reads the source data,
                      when only the first column is known to X_item.csv
    X_behaviour.tsv   a user and, after a tab, the items in order: read where X_pair.csv is absent or has no timestamps,
                      as in QB and TN
    X_item.csv        item, title in Chinese, title in English (may be absent)
    X_cover/          or images/: covers, ITEM.jpg or of another kind
    MODALITY_features.npy with MODALITY_ids.npy

    The .csv have no header as published; one that names its columns as in `HEADERS` is understood, in any order, and
    other columns beside those are passed over. Raises `DataError` that names file, line and column.
    """
    items_path = _only(source, ITEMS)
    if items_path is None:
        raise DataError(f"{source} has no {ITEMS}: the items and their titles")
    covers, passed = _covers(source)
    items = _items(items_path, covers)
    path, events, rules = _events(source, items, options)
    rules += passed
    rules.append("a title is the English one or, without one, the Chinese")
    untitled = int((items["title"] == MISSING_TITLE).sum())
    if untitled:
        rules.append(f"{UNTITLED}: {untitled}")
    features = read_features(source, {})
    if "image" not in features and not (items["image"] != "").any():
        rules.append(f"no item has a cover in {COVERS} or images/, or image features, so there is no image modality")
    return RawDataset(events, source, f"{source.resolve().name}/{path.name}", items, features, tuple(rules))


def _only(source: Path, pattern: str) -> Path | None:
    """The file or folder of a pattern, if it is there. Raises `DataError` when there are several."""
    found = sorted(source.glob(pattern))
    if len(found) > 1:
        raise DataError(f"{source} has {', '.join(path.name for path in found)}: leave one")
    return found[0] if found else None


def _covers(source: Path) -> tuple[dict[str, str], list[str]]:
    """The path of each item's cover, below `source`, and what to say about files that are passed over."""
    folder = _only(source, COVERS) or source / "images"
    names, passed = pictures_in(folder)
    return {item: f"{folder.name}/{name}" for item, name in names.items()}, passed


def _items(path: Path, covers: dict[str, str]) -> pl.DataFrame:
    """The items with one title each."""
    table, _ = _read(path, ("item", "chinese", "english"), needed=("item",))
    repeated = table.filter(~pl.col("item").is_first_distinct())
    if len(repeated):
        raise DataError(f"{path} line {repeated['line'][0]}: item {repeated['item'][0]!r} has a line already")
    titles = [pl.col(name).replace("", None) for name in ("english", "chinese") if name in table.columns]
    title = pl.coalesce(*titles, pl.lit(MISSING_TITLE)).alias("title")
    image = pl.col("item").replace_strict(covers, default="", return_dtype=NAME).alias("image")
    return table.with_columns(title, pl.lit("").alias("text"), image).select(NO_ITEMS.columns)


def _events(source: Path, items: pl.DataFrame, options: Options) -> tuple[Path, pl.DataFrame, list[str]]:
    """The file of the events, what it says, and what was decided about it."""
    path, behaviour = _only(source, PAIRS), _only(source, BEHAVIOUR)
    if path is not None:
        events, rules = _pairs(path, items)
        if "timestamp" in events.columns:
            return path, _timed(path, events), rules
        if behaviour is None:
            return path, untimed(events.select("user", "item"), options), rules
    if behaviour is None:
        raise DataError(f"{source} has neither {PAIRS} nor {BEHAVIOUR}: the events")
    raw = read_sequences(behaviour, options)
    return behaviour, raw.events, list(raw.rules)


def _pairs(path: Path, items: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """The rows of a file of pairs; where it has no header, which of the first two columns is the item."""
    events, named = _read(path, ("user", "item", "timestamp"), needed=("user", "item"))
    if named:
        return events, []
    user_known, item_known = events.select(pl.col("user", "item").is_in(items["item"].implode()).all()).row(0)
    if not user_known or item_known:
        return events, [f"{path.name} has no header: user, item and timestamp by place"]
    events = events.rename({"user": "item", "item": "user"})
    return events, [f"{path.name} has no header: item, user and timestamp by place, as only the first are known items"]


def _timed(path: Path, events: pl.DataFrame) -> pl.DataFrame:
    """The events with timestamps as whole numbers."""
    timestamps = events["timestamp"].cast(WHOLE, strict=False)
    if timestamps.null_count():
        row = int(timestamps.is_null().arg_max() or 0)
        line, cell = events["line"][row], events["timestamp"][row]
        raise DataError(f"{path} line {line}: timestamp is {cell!r}, not a whole number")
    return events.select("user", "item", timestamps)


def _read(path: Path, places: tuple[str, ...], needed: tuple[str, ...]) -> tuple[pl.DataFrame, bool]:
    """Those of the columns `places` that a file has, as texts, the `line` of each row, and whether a header names them.

    A header is a first row that names the item; without one, columns go by place.
    """
    rows = list(_rows(path))
    first = rows[0][1] if rows else []
    names: list[str | None] = [_column(field) for field in first]
    named = "item" in names
    if named:
        rows = rows[1:]
    else:
        names = [*places[: len(first)]]
    for name in places:
        if names.count(name) > 1 or (name in needed and name not in names):
            problem = "more than one column" if name in names else "no column"
            raise DataError(f"{path} has {problem} {name!r} ({', '.join(first) or 'it is empty'})")
    for line, fields in rows:
        if len(fields) != len(names):
            raise DataError(f"{path} line {line} has {len(fields)} fields, not {len(names)}")
    columns = {name: [row[names.index(name)].strip() for _, row in rows] for name in places if name in names}
    for name in needed:
        if "" in columns[name]:
            raise DataError(f"{path} line {rows[columns[name].index('')][0]}: {name} is empty")
    table = pl.DataFrame(columns, schema=dict.fromkeys(columns, NAME))
    return table.with_columns(pl.Series("line", [line for line, _ in rows], dtype=WHOLE)), named


def _column(name: str) -> str | None:
    """What a header's name means, if anything."""
    normalised = "_".join(name.split()).lower()
    return next((column for column, names in HEADERS.items() if normalised in names), None)


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank, each with the line on which it ends."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            yield from ((reader.line_num, row) for row in reader if row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a readable CSV file: {error}") from None
