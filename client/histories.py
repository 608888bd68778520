"""Ragged histories of many users: flat lists with offsets, so that nothing is padded to the longest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from common import seeds
from common.interactions import Split


@dataclass(frozen=True)
class Histories:
    """User u's items are `items[offsets[u]:offsets[u + 1]]`; `owners` [n_events] gives each event's u.

    `keys` [n_users] seeds each user's draws. `shown` [n_events] is 0 for events hidden from a model's input for now.
    """

    keys: Tensor
    items: Tensor
    offsets: Tensor
    owners: Tensor
    shown: Tensor
    n_items: int

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.keys)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Histories":
        """Move to a device; `dtype` is that of the views they will be pooled in."""
        keys, items, offsets, owners = (part.to(device) for part in (self.keys, self.items, self.offsets, self.owners))
        return Histories(keys, items, offsets, owners, self.shown.to(device, dtype), self.n_items)

    def hidden(self, rate: float, salt: int) -> "Histories":
        """Hide each event with chance `rate`, drawn by user, item and `salt`."""
        if rate == 0:
            return self
        draws = seeds.uniform(seeds.key("hide", salt), self.keys[self.owners], self.items)
        return replace(self, shown=(draws >= rate).to(self.shown.dtype))

    def lengths(self) -> Tensor:
        """Number of events of each user, [n_users]."""
        return self.offsets.diff()

    def sizes(self) -> Tensor:
        """Number of shown events of each user, at least 1 so that it can divide, [n_users]."""
        return self.shown.new_zeros(len(self)).index_add(0, self.owners, self.shown).clamp(min=1)

    def total(self, table: Tensor) -> Tensor:
        """Sum the rows of `table` [n_items, width] over each user's shown events, [n_users, width]."""
        return embedding_bag(
            self.items, table, self.offsets, mode="sum", include_last_offset=True, per_sample_weights=self.shown
        )

    def mask(self) -> Tensor:
        """Whether a user has an item, hidden or not, [n_users, n_items] boolean."""
        mask = torch.zeros(len(self), self.n_items, dtype=torch.bool, device=self.items.device)
        mask[self.owners, self.items] = True
        return mask


def histories(split: Split, extra: NDArray[np.int64] | None = None) -> Histories:
    """Build the training histories of a split's users; `extra` [n_users] appends one item each, where not negative."""
    items, lengths = split.train_items, np.diff(split.offsets)
    owners = np.repeat(np.arange(len(split.users)), lengths)
    if extra is not None:
        has = np.flatnonzero(extra >= 0)
        order = np.argsort(np.concatenate([owners, has]), kind="stable")
        items, owners = np.concatenate([items, extra[has]])[order], np.concatenate([owners, has])[order]
        lengths = lengths + (extra >= 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(
        keys=seeds.user_keys(split.users),
        items=torch.from_numpy(items),
        offsets=torch.from_numpy(offsets),
        owners=torch.from_numpy(owners),
        shown=torch.ones(len(items)),
        n_items=split.n_items,
    )


def single(items: Sequence[int], n_items: int, user: str) -> Histories:
    """Build one user's history from its items."""
    offsets = np.array([0, len(items)])
    nobody = np.array([-1])
    return histories(Split((user,), offsets, np.array(items, dtype=np.int64), nobody, nobody, n_items))
