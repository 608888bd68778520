"""The people of a device and their events, as their owner changes them.

interactions.parquet    their events; see `tessera.common.data.interactions`
people.json             who was added by hand, and may have no event yet

A change is one atomic write, made while no task of a server is answered. What is refused changes nothing.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from filelock import FileLock, Timeout

from tessera.client.people.items import find_item
from tessera.common.data.catalogue import ITEMS, Catalogue, load_catalogue
from tessera.common.data.csv_files import CsvFile
from tessera.common.data.folder_kinds import INTERACTIONS, is_dataset, no_device
from tessera.common.data.interactions import Interactions, Part, from_frame, from_table
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import PRIVATE, read_json, write_json
from tessera.common.utils.tables import read_table, write_table

PEOPLE = "people.json"
LOCK = ".people.lock"
PATIENCE = 120.0
"""Seconds to wait for a task in hand: a round of training, say."""
COLUMNS = ("user", "item", "timestamp")


@dataclass(frozen=True)
class Event:
    """Something a person had: the item's id and title, and when, in the unit of the data."""

    item: str
    title: str
    time: int


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold a device's people: a task is answered, or its owner changes something. Raises `DataError` after two minutes."""
    try:
        held = FileLock(folder / LOCK, mode=PRIVATE, preserve_lock_file=True).acquire(timeout=PATIENCE)
    except Timeout:
        raise DataError(f"{folder} has been in use for {PATIENCE:g} s: try again when its task is done") from None
    with held:
        yield


def load_people(folder: Path, n_items: int) -> Interactions:
    """Read everybody on a device: those with events, then those without. Raises `DataError` that names file and row."""
    path, extra = folder / INTERACTIONS, _added(folder)
    frame = read_table(path, COLUMNS) if path.exists() or not extra else None
    if frame is None or frame.is_empty():
        nothing = np.zeros(0, dtype=np.int64)
        known = Interactions((), np.zeros(1, dtype=np.int64), nothing, nothing, n_items)
    else:
        known = from_table(path, frame, n_items)
    return known.beside(tuple(user for user in extra if user not in known.users))


class People:
    """The people of the device in `folder`."""

    def __init__(self, folder: Path) -> None:
        """Raises `DataError` where it is no device's folder."""
        there = (folder / INTERACTIONS).exists() or (folder / PEOPLE).exists()
        if not there or is_dataset(folder):
            raise DataError(no_device(folder))
        self.folder = folder

    @property
    def catalogue(self) -> Catalogue:
        """The items, as they are now."""
        path = self.folder / ITEMS
        stat = path.stat() if path.exists() else None
        return _catalogue(self.folder, (stat.st_ino, stat.st_mtime_ns) if stat else (0, 0))

    def users(self) -> tuple[str, ...]:
        """Everybody here."""
        return load_people(self.folder, len(self.catalogue)).users

    def numbers(self) -> dict[str, int]:
        """How many events everybody has."""
        known = load_people(self.folder, len(self.catalogue))
        return dict(zip(known.users, np.diff(known.offsets).tolist(), strict=True))

    def events(self, user: str) -> list[Event]:
        """A person's events, the oldest first. Raises `DataError` for a stranger."""
        return self._events(load_people(self.folder, len(self.catalogue)), user)

    def _events(self, known: Interactions, user: str) -> list[Event]:
        row = self._row(known, user)
        mine = slice(known.offsets[row], known.offsets[row + 1])
        return [self._event(item, at) for item, at in zip(known.items[mine], known.timestamps[mine], strict=True)]

    def add_person(self, user: str) -> None:
        """Take a new person in, who has no event yet."""
        with in_use(self.folder):
            if not user.strip():
                raise DataError("a person needs a name that is not empty")
            if user in self.users():
                raise DataError(f"{user!r} is on this device already")
            self._list((*_added(self.folder), user))

    def add_event(self, user: str, item: str, at: int | None = None) -> Event:
        """Note that a person had an item, now or `at` a time, in the unit of the data; now is after all they had before."""
        with in_use(self.folder):
            index, before = find_item(self.catalogue, item), self.events(user)
            if (event := self._event(index, 0)).item in {one.item for one in before}:
                raise DataError(f"{user!r} has {event.title!r} ({event.item}) already: the first time counts")
            last = max((one.time for one in before), default=0)
            when = max(int(time.time()), last + 1) if at is None else at
            self._add([(user, index, when)])
            return self._event(index, when)

    def import_events(self, path: Path, user: str | None = None) -> int:
        """Add the events of a CSV with the columns user, item and, if there are times, timestamp; return how many were new.

        With `user` all are this person's, and no column is needed. Raises `DataError` that names the file and the row; then
        nothing was added.
        """
        with in_use(self.folder):
            rows, known = self._read(path, user), load_people(self.folder, len(self.catalogue))
            strangers = [person for person, _, _ in rows if person not in known.users]
            if user is not None and strangers:
                raise DataError(f"user {user!r} is not on this device ({self.folder}): add them first")
            had = {
                (person, one.item)
                for person in {row[0] for row in rows} - set(strangers)
                for one in self._events(known, person)
            }
            new = [row for row in rows if (row[0], self.catalogue.items[row[1]]) not in had]
            self._add(new)
            return len({row[:2] for row in new})

    def correct(self, user: str, item: str, instead: str | None = None) -> None:
        """Take an event back, or say that it was of another item. What was added into past sums stays there."""
        with in_use(self.folder):
            index = find_item(self.catalogue, item)
            mine = (pl.col("user").cast(pl.String) == user) & (pl.col("item") == index)
            frame = self._frame()
            if self._event(index, 0).item not in {one.item for one in self.events(user)}:
                raise DataError(f"{user!r} has no event with {self.catalogue.titles[index] or item!r}")
            if instead is None:
                frame = frame.filter(~mine)
            else:
                other = find_item(self.catalogue, instead)
                if self.catalogue.items[other] in {one.item for one in self.events(user)}:
                    raise DataError(f"{user!r} has {instead!r} already")
                frame = frame.with_columns(pl.when(mine).then(pl.lit(other)).otherwise(pl.col("item")).alias("item"))
            self._list((*_added(self.folder), user))
            write_table(self.folder / INTERACTIONS, frame)

    def remove(self, user: str) -> None:
        """Drop a person's events, and that they are here; the caller holds the folder `in_use`."""
        frame = self._frame()
        kept = frame.filter(pl.col("user").cast(pl.String) != user)
        self._list(one for one in _added(self.folder) if one != user)
        if len(kept) < len(frame):
            write_table(self.folder / INTERACTIONS, kept)

    def take_in(self, user: str, rows: list[tuple[str, int, int]], parts: list[int] | None = None) -> None:
        """Add a person with their events (user, item index, time); the caller holds the folder `in_use`."""
        self._add(rows, parts)  # first: whoever is there with an event is there with all
        self._list((*_added(self.folder), user))

    def frame(self, user: str) -> pl.DataFrame:
        """A person's rows of interactions.parquet as they stand."""
        return self._frame().filter(pl.col("user").cast(pl.String) == user)

    def _list(self, people: Iterable[str]) -> None:
        """Write who is here whether they have an event or not, each once."""
        write_json(self.folder / PEOPLE, {"people": list(dict.fromkeys(people))}, PRIVATE)

    def _frame(self) -> pl.DataFrame:
        path = self.folder / INTERACTIONS
        if path.exists():
            return read_table(path, COLUMNS)
        return pl.DataFrame(schema={"user": pl.String, "item": pl.Int64, "timestamp": pl.Int64})

    def _add(self, rows: list[tuple[str, int, int]], parts: list[int] | None = None) -> None:
        if not rows:
            return
        frame = self._frame()
        added = pl.DataFrame(rows, schema=list(COLUMNS), orient="row")
        if "part" in frame.columns:
            added = added.with_columns(pl.Series("part", parts or [int(Part.TRAIN)] * len(rows)))
        added = added.cast({name: frame.schema[name] for name in added.columns if name != "user"})
        both = pl.concat([frame.with_columns(pl.col("user").cast(pl.String)), added.select(frame.columns)])
        from_frame(both, len(self.catalogue))  # what cannot be read again is not written
        write_table(self.folder / INTERACTIONS, both)

    def _read(self, path: Path, user: str | None) -> list[tuple[str, int, int]]:
        """The rows of a CSV: person, item index, time; without a column of times they come in the order of the file."""
        file = CsvFile.open(path)
        for name in ("item",) if user is not None else ("user", "item"):
            if name not in file.columns:
                raise DataError(f"{path} has no column {name!r} (it has {', '.join(file.columns)})")
        try:
            frame = file.scan().collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise file.explained(error) from None
        now, rows = int(time.time()), []
        for number, row in enumerate(frame.iter_rows(named=True), 2):
            try:
                person = user if user is not None else row["user"]
                if not person:
                    raise DataError("no user")
                when = int(row["timestamp"]) if "timestamp" in row else now + number
                rows.append((person, find_item(self.catalogue, row["item"] or ""), when))
            except DataError as error:
                raise DataError(f"{path}, line {number}: {error}") from None
            except (TypeError, ValueError):
                raise DataError(f"{path}, line {number}: timestamp {row['timestamp']!r} is no whole number") from None
        return rows

    def _event(self, index: int, at: int) -> Event:
        item = self.catalogue.items[index]
        return Event(item, self.catalogue.titles[index] or item, int(at))

    def _row(self, known: Interactions, user: str) -> int:
        if user not in known.users:
            raise DataError(f"user {user!r} is not on this device ({self.folder})")
        return known.users.index(user)


@lru_cache(maxsize=8)
def _catalogue(folder: Path, changed: tuple[int, int]) -> Catalogue:
    return load_catalogue(folder, modalities=False)


def _added(folder: Path) -> tuple[str, ...]:
    """Who was added by hand."""
    path = folder / PEOPLE
    if not path.exists():
        return ()
    people = read_json(path).get("people")
    if not isinstance(people, list) or not all(isinstance(one, str) for one in people):
        raise DataError(f"{path} lists no people: restore it")
    return tuple(people)
