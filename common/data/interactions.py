"""Reads users' events, and splits them into training, validation and test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.common.data.folder_kinds import INTERACTIONS
from tessera.common.data.targets import Targets, ranges
from tessera.common.errors import DataError
from tessera.common.utils.tables import read_table, write_table

TIES = "events of a person with equal timestamps are ordered by a hash of person and item"
"""How tied events are ordered: by nothing that a ranking could know."""
NO_PART = 255
"""Marks an event that is neither trained on nor asked for."""


class Part(IntEnum):
    """Which part of the data an event belongs to, where the data's own authors say so."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True)
class Split:
    """The users' items by part. `train_items[offsets[u]:offsets[u + 1]]` are user u's training items, oldest first.

    `validation` and `test` are what is held out of each user, mostly one item. `cold_items` [n_items] marks the items that no
    training may use, `retired` [n_items] those of them that nobody is evaluated on or recommended either, `new` [n_users] the
    users who take no part in it; None where there are none (see `tessera.common.data.splits`).
    """

    users: tuple[str, ...]
    offsets: NDArray[np.int64]
    train_items: NDArray[np.int64]
    validation: Targets
    test: Targets
    n_items: int
    cold_items: NDArray[np.bool_] | None = None
    new: NDArray[np.bool_] | None = None
    retired: NDArray[np.bool_] | None = None

    def take(self, rows: NDArray[np.integer]) -> "Split":
        """The same split for a selection of users."""
        events, offsets = ranges(self.offsets, rows)
        users = tuple(self.users[row] for row in rows)
        new = None if self.new is None else self.new[rows]
        held_out = self.validation.take(rows), self.test.take(rows)
        marks = self.cold_items, new, self.retired
        return Split(users, offsets, self.train_items[events], *held_out, self.n_items, *marks)

    def without(self, retired: NDArray[np.bool_]) -> "Split":
        """The same split with items retired, [n_items]: no training event is on one, and whose held-out item one is, is not
        evaluated. All else stays what it was for, so that nobody is asked for what a model was trained on before."""
        kept = ~retired[self.train_items]
        before = np.concatenate([[0], np.cumsum(kept)])
        validation, test = (one.keep(~retired[one.items]) for one in (self.validation, self.test))
        return replace(
            self,
            offsets=before[self.offsets],
            train_items=self.train_items[kept],
            validation=validation,
            test=test,
            cold_items=retired if self.cold_items is None else self.cold_items | retired,
            retired=retired,
        )

    @property
    def is_new(self) -> bool:
        """Whether there are new users here."""
        return self.new is not None and bool(self.new.any())

    def training_users(self) -> "Split":
        """The users who take part in training."""
        return self if self.new is None else self.take(np.flatnonzero(~self.new))

    def new_users(self) -> "Split":
        """The users who take no part in training."""
        return self.take(np.flatnonzero(np.zeros(len(self.users)) if self.new is None else self.new))

    def counts(self) -> NDArray[np.int64]:
        """How often each item occurs in training, [n_items]."""
        return np.bincount(self.train_items, minlength=self.n_items)


@dataclass(frozen=True)
class Interactions:
    """Events sorted by user and time; user u's are the rows `offsets[u]:offsets[u + 1]`.

    Equal timestamps are ordered by a hash of user and item index: an order that no ranking can know, that every device and
    server find alike, and that neither other users nor items added at a catalogue's end change. A second event of the same
    user and item is dropped: the first counts.
    """

    users: tuple[str, ...]
    offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    n_items: int
    parts: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.items)

    def take(self, rows: NDArray[np.integer]) -> "Interactions":
        """The events of a selection of users, in that order."""
        events, offsets = ranges(self.offsets, rows)
        users = tuple(self.users[row] for row in rows)
        parts = None if self.parts is None else self.parts[events]
        return Interactions(users, offsets, self.items[events], self.timestamps[events], self.n_items, parts)

    def of_first(self, n_items: int) -> "Interactions":
        """The same people, with their events on the first items alone: what a catalogue knew that had so many."""
        kept = self.items < n_items
        offsets = np.concatenate([[0], np.cumsum(kept)])[self.offsets]
        parts = None if self.parts is None else self.parts[kept]
        return Interactions(self.users, offsets, self.items[kept], self.timestamps[kept], n_items, parts)

    def beside(self, people: tuple[str, ...]) -> "Interactions":
        """The same, and after them `people` who have no event yet."""
        offsets = np.concatenate([self.offsets, np.full(len(people), self.offsets[-1])])
        return replace(self, users=(*self.users, *people), offsets=offsets)

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """Whose each event is, [n_events] rows of users."""
        return np.repeat(np.arange(len(self.users)), np.diff(self.offsets))

    @cached_property
    def timed(self) -> bool:
        """Whether timestamps say of anybody's events which was first."""
        return bool(((np.diff(self.timestamps) != 0) & (np.diff(self.owners) == 0)).any())

    def split(self, given: bool = False) -> Split:
        """Hold out the last event of each user for test and the one before for validation.

        With `given`, the parts that the data's authors marked are used instead. A user with fewer than three events
        keeps all of them for training and is not evaluated.
        """
        if given:
            if self.parts is None:
                raise DataError("these interactions mark no parts: use the split 'leave-one-out'")
            return self.split_by(self.parts)
        parts, last = np.zeros(len(self), dtype=np.uint8), self.offsets[1:][np.diff(self.offsets) >= 3] - 1
        parts[last], parts[last - 1] = Part.TEST, Part.VALIDATION
        return self.split_by(parts, self.tied())

    def split_by(self, parts: NDArray[np.uint8], tied: NDArray[np.bool_] | None = None) -> Split:
        """Split by each event's part, [n_events] of `Part` or `NO_PART`; `tied` [n_events] marks those in theirs by chance."""
        training = parts == Part.TRAIN
        before = np.concatenate([[0], np.cumsum(training)])

        def held_out(part: Part) -> Targets:
            rows = np.flatnonzero(parts == part)
            chance = None if tied is None else tied[rows]
            return Targets.of_events(self.owners[rows], self.items[rows], len(self.users), chance)

        validation, test = held_out(Part.VALIDATION), held_out(Part.TEST)
        return Split(self.users, before[self.offsets], self.items[training], validation, test, self.n_items)

    def split_last(self, parts: NDArray[np.uint8]) -> Split:
        """The same, where only a user's last event of a part is held out for it; the others are in no part."""
        kept, tied = np.where(parts == Part.TRAIN, parts, NO_PART), self.tied(parts)
        for part in (Part.VALIDATION, Part.TEST):
            rows = np.flatnonzero(parts == part)
            last = rows[np.flatnonzero(np.diff(self.owners[rows], append=-1))]
            kept[last] = part
        return self.split_by(kept, tied)

    def tied(self, among: NDArray[np.uint8] | None = None) -> NDArray[np.bool_]:
        """Which events have the time of another of the same user, where given of the same part `among` [n_events]."""
        columns = {"owner": self.owners, "timestamp": self.timestamps} | ({} if among is None else {"among": among})
        return pl.DataFrame(columns).is_duplicated().to_numpy()

    def frame(self) -> pl.DataFrame:
        """The events as a table: user, item (its index), timestamp and, where marked, part."""
        users = pl.Series("user", list(self.users), dtype=pl.String).gather(self.owners)
        frame = pl.DataFrame([users, pl.Series("item", self.items), pl.Series("timestamp", self.timestamps)])
        return frame if self.parts is None else frame.with_columns(pl.Series("part", self.parts))

    def save(self, folder: Path) -> None:
        """Write the events below `folder`."""
        write_table(folder / INTERACTIONS, self.frame())


def load_interactions(folder: Path, n_items: int) -> Interactions:
    """Read the events below `folder`. Raises `DataError` that names the file and the first bad row."""
    path = folder / INTERACTIONS
    return from_table(path, read_table(path, ("user", "item", "timestamp")), n_items)


def from_table(path: Path, frame: pl.DataFrame, n_items: int) -> Interactions:
    """`from_frame` of what was read from `path`, which its errors name."""
    try:
        return from_frame(frame, n_items)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def from_frame(frame: pl.DataFrame, n_items: int) -> Interactions:
    """Sort, check and deduplicate a table of events (user, item index, timestamp, optionally part).

    Users are ordered as they first appear. Raises `DataError` that names the first bad row or column.
    """
    _check(frame, n_items)
    users = frame["user"].cast(pl.String).unique(maintain_order=True)
    order = pl.DataFrame({"user": users, "rank": np.arange(len(users))})
    frame = frame.with_columns(pl.col("user").cast(pl.String)).join(order, on="user", maintain_order="left")
    frame = (
        frame.with_columns(_draws(frame, users))
        .sort("rank", "timestamp", "draw", "item", maintain_order=True)
        .unique(["rank", "item"], keep="first", maintain_order=True)
    )
    lengths = np.bincount(frame["rank"].to_numpy(), minlength=len(users))
    return Interactions(
        users=tuple(users.to_list()),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=frame["item"].cast(pl.Int64).to_numpy(),
        timestamps=frame["timestamp"].cast(pl.Int64).to_numpy(),
        n_items=n_items,
        parts=frame["part"].cast(pl.UInt8).to_numpy() if "part" in frame.columns else None,
    )


def _draws(frame: pl.DataFrame, users: pl.Series) -> pl.Series:
    """What orders tied events, "draw" [n_events]: a hash of user and item; 0 for events that no other is tied with."""
    draws, tied = np.zeros(len(frame), dtype=np.int64), frame.select("rank", "timestamp").is_duplicated().to_numpy()
    if tied.any():
        import torch  # only here: most tables have no ties, and are read faster than torch

        from tessera.common.utils import counter_rng

        events = frame.filter(tied)
        people, owners = np.unique(events["rank"].to_numpy(), return_inverse=True)
        keys = counter_rng.user_keys(users.gather(people).to_list())[torch.from_numpy(owners)]
        items = torch.from_numpy(events["item"].cast(pl.Int64).to_numpy().copy())
        draws[tied] = counter_rng.mix(counter_rng.key("tied events"), keys, items).numpy()
    return pl.Series("draw", draws)


def _check(frame: pl.DataFrame, n_items: int) -> None:
    """Refuse an empty table, nulls, columns of another type, and items and parts that there are not."""
    if frame.is_empty():
        raise DataError("there are no interactions")
    whole = [name for name in ("item", "timestamp", "part") if name in frame.columns]
    for name in ("user", *whole):
        if frame[name].null_count():
            raise DataError(f"row {int(frame[name].is_null().arg_max() or 0)} has no {name}")
        if name in whole and not frame[name].dtype.is_integer():
            raise DataError(f"column {name} holds {frame[name].dtype}, not whole numbers")
    outside = (frame["item"] < 0) | (frame["item"] >= n_items)
    if outside.any():
        row = int(outside.arg_max() or 0)
        raise DataError(f"row {row} names item index {frame['item'][row]}, the catalogue has {n_items} items")
    strange = ~frame["part"].is_in([int(part) for part in Part]) if "part" in frame.columns else pl.Series([False])
    if strange.any():
        row = int(strange.arg_max() or 0)
        raise DataError(f"row {row}: part {frame['part'][row]} is not one of 0, 1, 2")


def assign(users: Sequence[str], n_nodes: int) -> list[NDArray[np.int64]]:
    """Divide the users among nodes in turn: node j hosts users j, j + n_nodes, ...

    Raises `DataError` when a node stays empty.
    """
    if n_nodes > len(users):
        raise DataError(f"{n_nodes} nodes are more than the {len(users)} users")
    return [np.arange(node, len(users), n_nodes) for node in range(n_nodes)]
