"""Holds raw data in memory, and reads and checks the files that converters share: tables, items, features."""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.common.data.csv_files import CsvFile
from tessera.common.encoders.base import Encoder
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_json

WHOLE, NUMBER, NAME = pl.Int64, pl.Float64, pl.String
EXPECTED = {WHOLE: "a whole number", NUMBER: "a number", NAME: "a text"}
ENCODERS = "encoders.json"
NO_ITEMS = pl.DataFrame(schema=dict.fromkeys(("item", "title", "text", "image"), pl.String))


@dataclass(frozen=True)
class Options:
    """What a conversion may be asked for; `tessera.common.registry.converters` says which kind of data uses what.

    Raises `DataError` for a filter that is no finite number of at least 0.
    """

    min_user_events: int = 5
    """Drop users with fewer events, and items with fewer than the next, again and again until none is left."""
    min_item_events: int = 5
    min_rating: float = 0.0
    """Drop events that are rated lower."""
    images: bool = False
    """Copy the pictures into the dataset."""
    encode: Encoder | None = None
    """Encode texts and pictures, in place of ready features."""
    skip_unreadable: bool = False
    """Count pictures that are not there or cannot be read as missing, where pictures are encoded or copied."""
    user_column: str = "user"
    item_column: str = "item"
    timestamp_column: str = "timestamp"
    rating_column: str = "rating"
    title_column: str = "title"
    text_column: str = "text"
    image_column: str = "image"
    in_order: bool = False
    """Events without timestamps stand in the order in which they happened; otherwise that order says nothing."""
    genres: bool = False
    """Let an item's text begin with its genres, where the raw data have them apart."""
    user_share: float = 1.0
    """Share of the users who are kept, drawn by a hash of their id, before anything else is left out."""
    shop_seed: int = 0
    """What the generated shop is drawn by."""

    def __post_init__(self) -> None:
        """Refuse filters that filter nothing meaningful."""
        if not 0 < self.user_share <= 1:
            raise DataError(f"user_share is {self.user_share}: set it to a share above 0 and up to 1")
        for name in ("min_user_events", "min_item_events", "min_rating"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise DataError(f"{name} is {value}: set it to a finite number of at least 0")

    @property
    def given(self) -> tuple[str, ...]:
        """The options that are not at their defaults."""
        return tuple(option.name for option in fields(self) if getattr(self, option.name) != option.default)


@dataclass(frozen=True)
class RawFeatures:
    """One modality as it came: row r of `values` [n_rows, n_features] belongs to item `ids[r]`."""

    ids: tuple[str, ...]
    values: NDArray[np.floating]
    encoder: str
    source: str


@dataclass(frozen=True)
class RawDataset:
    """What a converter read, before any filter.

    `events` has user, item (ids as text), timestamp, and optionally rating and part, in the file's order. `items` has
    item, title, text and image (a path below `folder`, or ""); without it, the items are those of the events.
    `source` is the name to record, `rules` says in words what was decided on the way.
    """

    events: pl.DataFrame
    folder: Path
    source: str
    items: pl.DataFrame | None = None
    features: Mapping[str, RawFeatures] = field(default_factory=dict)
    rules: tuple[str, ...] = ()

    @property
    def has_parts(self) -> bool:
        """Whether the data's authors split the events themselves."""
        return "part" in self.events.columns


def read_rows(path: Path, columns: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Read `columns` (name: WHOLE, NUMBER or NAME) of a CSV or parquet table, and those of `optional` that it has.

    Raises `DataError` that names the file, the row (counted from 1, without the header) and the column, for a column
    that is missing and a cell that is empty or not what it should be. No row is ever dropped.
    """
    with _table(path) as scan:
        present = scan.collect_schema().names()
        wanted = {**columns, **{name: kind for name, kind in (optional or {}).items() if name in present}}
        missing = [name for name in wanted if name not in present]
        if missing:
            raise DataError(f"{path} has no column {missing[0]!r} (it has {', '.join(present)})")
        refuse_misspelt(path, present, optional or {})
        return typed(path, scan, wanted)


def typed(path: Path, scan: pl.LazyFrame, wanted: Mapping[str, Any]) -> pl.DataFrame:
    """The columns `wanted` of a table that was read from `path`, as what they should be. Raises `DataError` as `read_rows`."""
    frame = scan.select(pl.col(name).cast(kind, strict=False) for name, kind in wanted.items()).collect()
    for name in frame.columns:
        _check(path, scan, name, frame[name], wanted[name])
    return frame


def refuse_misspelt(path: Path, present: Sequence[str], optional: Iterable[str]) -> None:
    """Raise `DataError` when an optional column is absent and another is called almost like it: it would go unread."""
    for name in set(optional) - set(present):
        near = difflib.get_close_matches(name, present, n=1, cutoff=0.8)
        if near:
            raise DataError(f"{path} has no column {name!r} but one called {near[0]!r}: rename whichever is misspelt")


@contextmanager
def _table(path: Path) -> Iterator[pl.LazyFrame]:
    """A lazy table, in which every column of a CSV is text. Explains what cannot be read when it is."""
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    file = None if path.suffix == ".parquet" else CsvFile.open(path)
    try:
        yield file.scan() if file else pl.scan_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise (file.explained(error) if file else DataError(f"{path} is not a readable table: {error}")) from None


def _check(path: Path, scan: pl.LazyFrame, name: str, column: pl.Series, kind: Any) -> None:
    """Refuse a cell that is empty or did not become a value of `kind`."""
    bad = column.is_null() | ~column.is_finite() if kind == NUMBER else column.is_null()
    if not bad.any():
        return
    row = int(bad.arg_max() or 0)
    cell = scan.select(name).slice(row, 1).collect().item()
    problem = "is empty" if cell is None else f"is {cell!r}, not {EXPECTED[kind]}"
    raise DataError(f"{path} row {row + 1}: {name} {problem}")


def read_items(path: Path, columns: Mapping[str, str]) -> pl.DataFrame:
    """Read a table of items: item, title, text, image, from the columns that `columns` names; an absent one is empty.

    Raises `DataError` for a missing id or one that stands twice.
    """
    ids = read_rows(path, {columns["item"]: NAME})[columns["item"]]
    if ids.is_duplicated().any():
        raise DataError(f"{path} names item {ids.filter(ids.is_duplicated())[0]!r} more than once")
    with _table(path) as scan:
        present = scan.collect_schema().names()
        refuse_misspelt(path, present, columns.values())
        there = {name: column for name, column in columns.items() if column in present}
        items = scan.select(pl.col(column).cast(pl.String).alias(name) for name, column in there.items()).collect()
    empty = [pl.lit("", dtype=pl.String).alias(name) for name in NO_ITEMS.columns if name not in there]
    return items.with_columns(empty).select(NO_ITEMS.columns).fill_null("")


def untimed(events: pl.DataFrame, options: Options) -> pl.DataFrame:
    """Events with the places of their rows as timestamps, where these are `in_order`, or else one time for all."""
    time = pl.int_range(pl.len(), dtype=WHOLE) if options.in_order else pl.lit(0, dtype=WHOLE)
    return events.with_columns(time.alias("timestamp"))


def read_features(folder: Path, encoders: Mapping[str, str], items: tuple[str, ...] = ()) -> dict[str, RawFeatures]:
    """Read every `<modality>_features.npy` of a folder with the item ids in `<modality>_ids.npy`.

    Without such ids, as many rows as there are `items` are of these items, in this order. What computed them is
    `encoders[modality]`, unless the folder says otherwise in `encoders.json`. Raises `DataError`
    for rows that do not fit the ids, an id that stands twice and values that are not finite.
    """
    named = {**encoders, **(read_json(folder / ENCODERS) if (folder / ENCODERS).exists() else {})}
    features = {}
    for path in sorted(folder.glob("*_features.npy")):
        modality = path.name.removesuffix("_features.npy")
        values = read_values(path)
        ids = _ids(folder / f"{modality}_ids.npy", path, len(values), items)
        features[modality] = checked(ids, values, str(named.get(modality, "unknown")), path)
    return features


def _ids(path: Path, features: Path, n_rows: int, items: tuple[str, ...]) -> tuple[str, ...]:
    """The items of the rows of features: those that a file names or, without one, all in their order."""
    if not path.exists():
        if items and len(items) == n_rows:
            return items
        told = f"there are {len(items)} items, and without ids" if items else "without ids and a table of items"
        raise DataError(f"{path} does not exist: {features.name} has {n_rows} rows, {told} nobody knows whose they are")
    ids = read_array(path)
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
        raise DataError(f"{path} holds {ids.dtype} {ids.shape}, not a list of ids")
    if len(ids) != n_rows:
        raise DataError(f"{features} has {n_rows} rows, but {path.name} names {len(ids)} items")
    return tuple(map(str, ids.tolist()))


def checked(ids: tuple[str, ...], values: NDArray[np.floating], encoder: str, path: Path) -> RawFeatures:
    """Features whose ids are distinct and whose values are finite. Raises `DataError` that names file and item."""
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(item for item in ids if item in seen or seen.add(item))  # type: ignore[func-returns-value]
        raise DataError(f"{path} has two rows for item {twice!r}")
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"{path} row {row} (item {ids[row]!r}) is not finite: mend it, or leave the item out")
    return RawFeatures(ids, values, encoder, path.name)


def read_values(path: Path) -> NDArray[np.floating]:
    """Read a matrix of floating-point features, [n_rows, n_features]; float64 becomes float32."""
    values = read_array(path)
    if values.ndim != 2 or values.dtype.kind != "f" or 0 in values.shape:
        raise DataError(f"{path} holds {values.dtype} {values.shape}, not a matrix of floating-point features")
    return values if values.dtype in (np.float16, np.float32) else values.astype(np.float32)


def read_array(path: Path) -> NDArray[Any]:
    """Read a .npy file, never a pickled one. Raises `DataError` that names the file."""
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a readable .npy file: {error}") from None
    return array
