"""Reads RecBole's atomic files: NAME.inter and, where there is one, NAME.item; many sets are published like this."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tessera.common.data.interactions import Part
from tessera.common.datasets.raw import NAME, NO_ITEMS, NUMBER, Options, RawDataset, typed, untimed
from tessera.common.errors import DataError

PARTS = {"train": Part.TRAIN, "valid": Part.VALIDATION, "test": Part.TEST}
"""Files of a split that is given: NAME.train.inter, NAME.valid.inter, NAME.test.inter."""
KINDS = ("token", "token_seq", "float", "float_seq")
USERS, ITEMS = ("user_id", "userid", "user"), ("item_id", "itemid", "item")
TITLES = ("title", "movie_title", "item_name", "name")
SECOND = 10**6


def read_recbole(source: Path, options: Options) -> RawDataset:
    """Read a folder with NAME.inter, or NAME.{train,valid,test}.inter, whose split is kept, and NAME.item.

    Fields are separated by tabs, and the header says each one's name and kind: user_id:token, item_id:token, rating:float,
    timestamp:float. Of items the title is read, and as their text all other fields of words (token_seq). NAME.user is not
    read: what a person is beside their events stays out. Raises `DataError` that names file, row and field.
    """
    if not source.is_dir():
        raise DataError(f"{source} is not a folder: name the one with NAME.inter")
    files = _files(source)
    read = [_events(path, part, options) for path, part in files]
    columns = [set(events.columns) for events in read]
    if any(one != columns[0] for one in columns):
        raise DataError(
            f"{', '.join(path.name for path, _ in files)} have different fields: rating and timestamp are in some"
        )
    events = pl.concat([one.select(read[0].columns) for one in read])
    torn = (
        events.filter(pl.col("part").n_unique().over("user", "item") > 1)
        if "part" in events.columns
        else events.clear()
    )
    if len(torn):
        raise DataError(
            f"{source}: user {torn['user'][0]!r} and item {torn['item'][0]!r} stand in two parts of the split"
        )
    items, rules = _items(source, events["item"])
    return RawDataset(events, source, source.resolve().name, items, {}, tuple(rules))


def _files(source: Path) -> list[tuple[Path, Part | None]]:
    """The files of events, and of which part they are. Raises `DataError` for none, and for several datasets."""
    found = sorted(source.glob("*.inter"))
    parts = {path: PARTS.get(path.name.removesuffix(".inter").rpartition(".")[2]) for path in found}
    whole = [path for path in found if parts[path] is None]
    if len(whole) == 1:
        return [(whole[0], None)]
    if whole or not found:
        named = ", ".join(path.name for path in whole) or "no file of events, NAME.inter"
        raise DataError(f"{source} has {named}: one dataset goes into one folder")
    if set(parts.values()) != set(PARTS.values()) or len(found) != len(PARTS):
        named = ", ".join(path.name for path in found)
        raise DataError(f"{source} has {named}: a split has NAME.train, .valid and .test.inter")
    return list(parts.items())


def _read(path: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """A file's fields as texts by their names, and their kinds. Raises `DataError` for a header of another form."""
    try:
        frame = pl.read_csv(path, separator="\t", infer_schema=False, quote_char=None, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} is not a readable table: {str(error).splitlines()[0]}") from None
    kinds: dict[str, str] = {}
    for column in frame.columns:
        name, _, kind = column.partition(":")
        if kind not in KINDS or name in kinds:
            raise DataError(
                f"{path}: its header has {column!r}, not NAME:KIND, each once, with a KIND of {', '.join(KINDS)}"
            )
        kinds[name] = kind
    return frame.rename(dict(zip(frame.columns, kinds, strict=True))), kinds


def _events(path: Path, part: Part | None, options: Options) -> pl.DataFrame:
    """The events of a file by our names."""
    frame, kinds = _read(path)
    names = {"user": _first(path, USERS, kinds), "item": _first(path, ITEMS, kinds)}
    wanted = {"user": NAME, "item": NAME} | {name: NUMBER for name in ("rating", "timestamp") if name in kinds}
    shown = frame.select(pl.col(names.get(name, name)).alias(name) for name in wanted)
    events = typed(path, shown.lazy(), wanted)
    if "timestamp" in kinds:
        whole = (events["timestamp"] == events["timestamp"].round()).all()
        scaled = pl.col("timestamp") if whole else pl.col("timestamp") * SECOND
        events = events.with_columns(scaled.round().cast(pl.Int64))
    else:
        events = untimed(events, options)
    return events if part is None else events.with_columns(pl.lit(int(part), dtype=pl.UInt8).alias("part"))


def _first(path: Path, names: Sequence[str], kinds: dict[str, str]) -> str:
    """Which of several names a file uses. Raises `DataError` for none."""
    if found := next((name for name in names if name in kinds), None):
        return found
    raise DataError(f"{path} has no field {names[0]!r} (it has {', '.join(kinds)})")


def _items(source: Path, used: pl.Series) -> tuple[pl.DataFrame | None, list[str]]:
    """The items of NAME.item, and those that only events name, and what to say about these."""
    found = sorted(source.glob("*.item"))
    if not found:
        return None, []
    if len(found) > 1:
        raise DataError(f"{source} has {', '.join(path.name for path in found)}: one dataset goes into one folder")
    frame, kinds = _read(found[0])
    item = _first(found[0], ITEMS, kinds)
    ids = typed(found[0], frame.lazy(), {item: NAME})[item]
    if ids.is_duplicated().any():
        raise DataError(f"{found[0]} names item {ids.filter(ids.is_duplicated())[0]!r} more than once")
    title = next((name for name in TITLES if name in kinds), None)
    words = [name for name, kind in kinds.items() if kind == "token_seq" and name != title]
    text = pl.concat_str([pl.col(name) for name in words], separator=". ", ignore_nulls=True) if words else pl.lit("")
    shown = pl.col(title).fill_null("") if title else pl.lit("")
    items = frame.select(
        pl.col(item).alias("item"), shown.alias("title"), text.alias("text"), pl.lit("").alias("image")
    )
    unknown = used.unique(maintain_order=True)
    unknown = unknown.filter(~unknown.is_in(ids.implode()))
    if not len(unknown):
        return items, []
    rest = pl.DataFrame({"item": unknown}).with_columns(pl.lit("").alias(name) for name in NO_ITEMS.columns[1:])
    return pl.concat([items, rest]), [f"items with events that {found[0].name} does not describe: {len(unknown)}"]
