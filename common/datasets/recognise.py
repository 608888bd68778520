"""Says what raw data look like: which converter fits a folder or file, and by what."""

from dataclasses import dataclass
from pathlib import Path

from tessera.common.data.csv_files import CsvFile
from tessera.common.data.folder_kinds import DATASET, other_than_data
from tessera.common.datasets.movielens import NAMES
from tessera.common.errors import DataError

RECOGNISED = frozenset({"movielens", "fedvlr", "recbole", "ninerec", "amazon", "table", "sequences"})
"""Kinds of data that are known by their looks."""
USER_NAMES = ("user", "user_id", "userid", "customer", "customer_id", "reviewerid", "visitorid", "session_id", "uid")
ITEM_NAMES = (
    "item",
    "item_id",
    "itemid",
    "product",
    "product_id",
    "movie_id",
    "movieid",
    "sku",
    "asin",
    "parent_asin",
    "isbn",
)
TIME_NAMES = ("timestamp", "time", "date", "datetime", "created_at")
RATING_NAMES = ("rating", "stars", "score")


@dataclass(frozen=True)
class Fit:
    """A kind of data that a folder may be, what tells so, and the source to convert with its options."""

    kind: str
    why: str
    source: Path
    options: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that converts it."""
        return " ".join(["tessera data convert", self.kind, str(self.source), "DESTINATION", *self.options])


def recognise(source: Path) -> list[Fit]:
    """The kinds of data that `source` may be, the likeliest first. Raises `DataError` where it is not there."""
    if not source.exists():
        raise DataError(f"{source} does not exist")
    if source.is_file():
        return _file(source)
    files = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    names = [path.name for path in files]
    found: list[Fit] = []

    def fits(kind: str, why: str) -> None:
        found.append(Fit(kind, why, source))

    for name in ("ratings.dat", "u.data"):
        if name in names:
            fits("movielens", f"it has {name}")
    if "ratings.csv" in names and set(NAMES["item"]) & set(_columns(source / "ratings.csv")):
        fits("movielens", "ratings.csv names movies")
    if "inter.csv" in names and "split_label" in _columns(source / "inter.csv"):
        fits("fedvlr", "inter.csv has split_label")
    if any(name.endswith(".inter") for name in names):
        fits("recbole", "it has .inter")
    if any(name.endswith("_item.csv") for name in names):
        fits("ninerec", "it has NAME_item.csv")
    if len([name for name in names if name.removesuffix(".gz").endswith((".json", ".jsonl"))]) >= 2:
        fits("amazon", "it has reviews and metadata in JSON")
    if {"events.csv", "events.parquet"} & set(names):
        found += _file(next(path for path in files if path.stem == "events"), source)
    elif not found:
        found += [fit for path in files if path.suffix in (".csv", ".tsv", ".txt") for fit in _file(path)]
    return found


def no_dataset(source: Path) -> DataError:
    """The error where a dataset was asked for, and `source` is none: which converter fits, where one does."""
    if told := other_than_data(source):
        return DataError(told)
    try:
        found = recognise(source)
    except DataError as error:
        return error
    if not found:
        return DataError(
            f"{source} holds neither a dataset (there is no {DATASET}) nor raw data of a known kind: make a table of events "
            "with the columns user and item (events.csv), or see tessera data kinds"
        )
    commands = ", or ".join(f"{fit.command} ({fit.why})" for fit in found)
    return DataError(f"{source} holds raw data, not a dataset. Convert it first: {commands}")


def _columns(path: Path) -> tuple[str, ...]:
    """A CSV file's columns; none where it is not readable, which its converter says better."""
    try:
        return CsvFile.open(path).columns
    except DataError:
        return ()


def _file(path: Path, source: Path | None = None) -> list[Fit]:
    """What a single file may be: a table of events, or lines of sequences."""
    columns = _columns(path)
    user, item = _named(columns, USER_NAMES), _named(columns, ITEM_NAMES)
    if user and item:
        options = [f"--user-column {user}" if user != "user" else "", f"--item-column {item}" if item != "item" else ""]
        for name, known in (("timestamp", TIME_NAMES), ("rating", RATING_NAMES)):
            there = _named(columns, known)
            options.append(f"--{name}-column {there}" if there and there != name else "")
        why = f"{path.name} has the columns {', '.join(columns)}"
        return [Fit("table", why, source or path, tuple(filter(None, options)))]
    if path.suffix == ".txt" and not source:
        return [Fit("sequences", f"{path.name} is a text: a line a user, 'user item item ...'", path)]
    if source:  # events.csv with columns that nobody knows
        why = f"{path.name} has the columns {', '.join(columns)}: say which of them are the user's and the item's"
        return [Fit("table", why, source, ("--user-column ...", "--item-column ..."))]
    return []


def _named(columns: tuple[str, ...], known: tuple[str, ...]) -> str:
    """The first column that is called as in `known`, however it is spelt; "" for none."""
    return next((column for name in known for column in columns if column.lower().strip() == name), "")
