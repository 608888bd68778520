"""Holds the events that are held out of training: what an evaluation asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

ABSENT = -1


@dataclass(frozen=True)
class Targets:
    """The items held out for one part: user u's are `items[offsets[u]:offsets[u + 1]]`, none, one or several, oldest first.

    `tied` [n_targets] marks those that another event of the same person has the same time as, so that the rule for ties, and
    not time, decided which of them is held out.
    """

    items: NDArray[np.int64]
    offsets: NDArray[np.int64]
    tied: NDArray[np.bool_]

    @classmethod
    def of_events(
        cls,
        owners: NDArray[np.integer],
        items: NDArray[np.int64],
        n_users: int,
        tied: NDArray[np.bool_] | None = None,
    ) -> "Targets":
        """Of events [n_targets] with their `owners`, which are sorted."""
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=n_users))]).astype(np.int64)
        return cls(items, offsets, np.zeros(len(items), dtype=np.bool_) if tied is None else tied)

    @classmethod
    def single(cls, items: Sequence[int] | NDArray[np.integer]) -> "Targets":
        """One item for each user, [n_users]; `ABSENT` where a user has none."""
        column = np.asarray(items, dtype=np.int64)
        owners = np.flatnonzero(column != ABSENT)
        return cls.of_events(owners, column[owners], len(column))

    @classmethod
    def none(cls, n_users: int) -> "Targets":
        """Of `n_users` nobody has any."""
        return cls.single(np.full(n_users, ABSENT))

    def __len__(self) -> int:
        """Return the number of targets."""
        return len(self.items)

    @cached_property
    def owners(self) -> NDArray[np.int64]:
        """Whose each target is, [n_targets] rows of users."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many targets each user has, [n_users]."""
        return np.diff(self.offsets)

    @property
    def people(self) -> int:
        """How many users have a target."""
        return int(np.count_nonzero(self.counts))

    @property
    def tied_people(self) -> int:
        """How many users have a target that is tied."""
        return len(np.unique(self.owners[self.tied]))

    def first(self) -> NDArray[np.int64]:
        """Each user's first target, or `ABSENT`, [n_users]: all there is to know where nobody has several."""
        found = np.full(len(self.counts), ABSENT, dtype=np.int64)
        found[self.counts > 0] = self.items[self.offsets[:-1][self.counts > 0]]
        return found

    def take(self, rows: NDArray[np.integer]) -> "Targets":
        """Those of a selection of users, in that order."""
        events, offsets = ranges(self.offsets, rows)
        return Targets(self.items[events], offsets, self.tied[events])

    def keep(self, kept: NDArray[np.bool_]) -> "Targets":
        """The same users, with those of their targets that are `kept`, [n_targets]."""
        return Targets.of_events(self.owners[kept], self.items[kept], len(self.counts), self.tied[kept])


def ranges(offsets: NDArray[np.int64], rows: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the events of users `rows` stand, one user after the other, and the offsets they have there."""
    lengths = np.diff(offsets)[rows]
    taken = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(taken[-1]) - np.repeat(taken[:-1], lengths)
    return np.repeat(offsets[:-1][rows], lengths) + within, taken
