"""Holds the histories of many users as flat lists with offsets, so that nothing is padded to the longest."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from tessera.client.per_person.gradients import Outer
from tessera.client.per_person.meeting import meet
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets
from tessera.common.utils import counter_rng


@dataclass(frozen=True)
class Cuts:
    """What cut histories have in common: `per_user` of them side by side begin one user's history, and all but its first
    `skipped` [n_users * per_user] events lie in one window."""

    per_user: int
    skipped: Tensor


@dataclass(frozen=True)
class Histories:
    """User u's items are `items[offsets[u]:offsets[u + 1]]`; `owners` [n_events] gives each event's u.

    `keys` [n_users] seeds each user's draws. `shown` [n_events] says how much an event counts in a model's input for now:
    1, 0 where it is hidden, and less with age where the model wants that.
    """

    keys: Tensor
    items: Tensor
    offsets: Tensor
    owners: Tensor
    shown: Tensor
    n_items: int
    cold_items: Tensor | None = None
    """Items that training must not know of, [n_items] boolean: neither as events nor as what events are held against."""
    cut: Cuts | None = None
    """Where these begin longer ones and were cut within windows: how."""

    def __len__(self) -> int:
        """Return the number of users."""
        return len(self.keys)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Histories":
        """Move to a device; `dtype` is that of the views they will be pooled in."""
        keys, items, offsets, owners = (part.to(device) for part in (self.keys, self.items, self.offsets, self.owners))
        cold_items = None if self.cold_items is None else self.cold_items.to(device)
        return Histories(keys, items, offsets, owners, self.shown.to(device, dtype), self.n_items, cold_items)

    def hidden(self, rate: float, salt: int) -> "Histories":
        """Hide each event with chance `rate`, drawn by user, item and `salt`."""
        if rate == 0:
            return self
        draws = counter_rng.uniform(counter_rng.key("hide", salt), self.keys[self.owners], self.items)
        return replace(self, shown=(draws >= rate).to(self.shown.dtype))

    def aged(self, recency: float) -> "Histories":
        """Let an event count (1 + number of later events)^-recency times: people's taste moves on."""
        if recency == 0:
            return self
        last = self.offsets[1:][self.owners] - 1
        age = last - torch.arange(len(self.items), device=self.items.device)
        return replace(self, shown=self.shown * (1 + age.to(self.shown.dtype)) ** -recency)

    def cuts(self, per_user: int, salt: int, window: int | None = None) -> tuple["Histories", "Histories"]:
        """Cut each history `per_user` times at drawn places, never before its first event if it has two.

        Returns what came before each cut, and the one event that followed it: as if [n_users * per_user] people had these
        histories, a user's side by side. With a `window`, histories are divided into windows of so many events, and one is
        drawn of each user in which all cuts lie: each place is as likely as any. Everybody needs an event.
        """
        salts = torch.arange(per_user, device=self.keys.device)
        draws = counter_rng.uniform(counter_rng.key("cut", salt), self.keys[:, None], salts)
        spans = self.lengths()[:, None] - 1
        skipped = torch.zeros_like(spans)
        if window is not None:
            drawn = counter_rng.uniform(counter_rng.key("cut window", salt), self.keys[:, None])
            skipped = (drawn * spans).long() // window * window
            spans = torch.minimum(spans - skipped, torch.full_like(spans, window))
        before = (skipped + torch.minimum((draws * spans).long() + 1, spans)).flatten()
        starts = self.offsets[:-1].repeat_interleave(per_user)
        offsets = torch.cat([before.new_zeros(1), before.cumsum(0)])
        rows = torch.arange(len(before), device=before.device)
        owners = rows.repeat_interleave(before)
        events = starts[owners] + torch.arange(len(owners), device=owners.device) - offsets[:-1][owners]
        keys, followed = self.keys.repeat_interleave(per_user), starts + before
        ends = torch.arange(len(rows) + 1, device=rows.device)
        cut = None if window is None else Cuts(per_user, skipped.expand(-1, per_user).flatten())
        return (
            Histories(
                keys, self.items[events], offsets, owners, self.shown[events], self.n_items, self.cold_items, cut
            ),
            Histories(keys, self.items[followed], ends, rows, self.shown[followed], self.n_items, self.cold_items),
        )

    def lengths(self) -> Tensor:
        """Number of events of each user, [n_users]."""
        return self.offsets.diff()

    def sizes(self) -> Tensor:
        """What a user's shown events count together, at least 1 so that it can divide, [n_users]."""
        return self.shown.new_zeros(len(self)).index_add(0, self.owners, self.shown).clamp(min=1)

    def norms(self) -> Tensor:
        """Euclidean norm of what a user's events count, at least 1, [n_users]: sqrt(|history|) where each counts once."""
        return self.shown.new_zeros(len(self)).index_add(0, self.owners, self.shown**2).clamp(min=1).sqrt()

    def total(self, table: Tensor) -> Tensor:
        """Sum the rows of `table` [n_items, width] over each user's events as they count, [n_users, width]."""
        return meet(self._summed, (table,), lambda gradient: [Outer(self.counts(), gradient, axis=0)], self._add_rows)

    def pooled(self, views: Tensor) -> Tensor:
        """The same of each of the views [n_views, n_items, dim], [n_users, n_views, dim]."""
        n_views, n_items, dim = views.shape

        def summed(views: Tensor) -> Tensor:
            return self._summed(views.transpose(0, 1).reshape(n_items, n_views * dim)).view(-1, n_views, dim)

        def adds(gradient: Tensor, into: Tensor) -> None:
            self._add_rows(gradient.flatten(1), into.transpose(0, 1).flatten(1))

        return meet(summed, (views,), lambda gradient: [Outer(self.counts(), gradient, axis=1)], adds)

    def counts(self) -> Tensor:
        """How much a user's events of each item count, [n_users, n_items]."""
        counts = self.shown.new_zeros(len(self), self.n_items)
        return counts.index_put_((self.owners, self.items), self.shown, accumulate=True)

    def _summed(self, table: Tensor) -> Tensor:
        return _bags(self.items, table, self.offsets, self.shown)

    def _add_rows(self, rows: Tensor, into: Tensor) -> None:
        """Add each user's row [width] to those of `into` [n_items, width] that are their items', as events count: what
        `_summed` does the other way round."""
        order, items, offsets = self._by_item
        owners, counts = self.owners[order], self.shown[order]
        into.index_add_(0, items, _bags(owners, rows, offsets, counts))

    @cached_property
    def _by_item(self) -> tuple[Tensor, Tensor, Tensor]:
        """Events in the order of their items, these items without repetition, and where each one's events begin."""
        order = self.items.argsort()
        items, counts = torch.unique_consecutive(self.items[order], return_counts=True)
        return order, items, torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    def mask(self) -> Tensor:
        """Whether a user has an item, hidden or not, [n_users, n_items] boolean."""
        mask = torch.zeros(len(self), self.n_items, dtype=torch.bool, device=self.items.device)
        mask[self.owners, self.items] = True
        return mask


def _bags(rows: Tensor, table: Tensor, offsets: Tensor, counts: Tensor) -> Tensor:
    """Sums of rows of a table as often as they count, from each offset to the next."""
    return embedding_bag(rows, table, offsets, mode="sum", include_last_offset=True, per_sample_weights=counts)


def histories(split: Split, extra: Targets | None = None) -> Histories:
    """Build the training histories of a split's users; `extra` appends what is held out of them, in its order."""
    items, lengths = split.train_items, np.diff(split.offsets)
    owners = np.repeat(np.arange(len(split.users)), lengths)
    if extra is not None:
        order = np.argsort(np.concatenate([owners, extra.owners]), kind="stable")
        items, owners = (np.concatenate(pair)[order] for pair in ((items, extra.items), (owners, extra.owners)))
        lengths = lengths + extra.counts
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Histories(
        keys=counter_rng.user_keys(split.users),
        items=torch.from_numpy(items),
        offsets=torch.from_numpy(offsets),
        owners=torch.from_numpy(owners),
        shown=torch.ones(len(items)),
        n_items=split.n_items,
        cold_items=None if split.cold_items is None else torch.from_numpy(split.cold_items),
    )


def single(items: Sequence[int], n_items: int, user: str) -> Histories:
    """Build one user's history from its items."""
    offsets = np.array([0, len(items)])
    nobody = Targets.none(1)
    return histories(Split((user,), offsets, np.array(items, dtype=np.int64), nobody, nobody, n_items))
