"""Splits a dataset as a run's settings say, also into cold items and new users.

Cold items are in no training and new users take no part in it: they measure what content does for items that nobody has yet,
and what a federation does for users whom it never trained on.

Both are drawn by a hash of the run's seed and the item's index or the user's id. So every device and the server agree on
them without a message, the number of nodes changes nothing, and which ones they are says nothing about anybody.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tessera.common.config.device import SplitSettings
from tessera.common.config.moments import Instant, moment
from tessera.common.config.settings import DataSettings
from tessera.common.data.interactions import Interactions, Part, Split
from tessera.common.utils import counter_rng

RANDOM_SHARE = 0.1
"""Share of each user's events that a random split holds out for validation, and for the test, unless settings say otherwise."""


def make_split(
    interactions: Interactions,
    data: DataSettings | SplitSettings,
    seed: int,
    retired: NDArray[np.bool_] | None = None,
) -> Split:
    """Split as the settings of a run say, then leave `retired` items [n_items] out.

    With cold items a user's training history is all their events on other items, and held out are their last event on a
    cold item for validation and their last on one for test; who has none is not evaluated.
    """
    if data.cold_items:
        parts = item_parts(interactions.n_items, data.cold_items, seed)
        split = replace(interactions.split_last(parts[interactions.items]), cold_items=parts != Part.TRAIN)
    elif data.split in ("leave-one-out", "given"):
        split = interactions.split(given=data.split == "given")
    else:
        split = _by_settings(interactions, data)
    if retired is not None:
        split = split.without(retired)
    if not data.cold_users:
        return split
    draws = counter_rng.uniform(counter_rng.key("cold users", seed), counter_rng.user_keys(split.users))
    return replace(split, new=(draws < data.cold_users).numpy())


def item_parts(n_items: int, share: float, seed: int) -> NDArray[np.uint8]:
    """What each item is for, [n_items] of `Part`: a `share` is for test, as large a share for validation."""
    draws = counter_rng.uniform(counter_rng.key("cold items", seed), torch.arange(n_items)).numpy()
    return np.select([draws < share, draws < 2 * share], [Part.TEST, Part.VALIDATION], Part.TRAIN).astype(np.uint8)


def _by_settings(interactions: Interactions, data: DataSettings | SplitSettings) -> Split:
    """The splits that hold out by time or by chance."""
    if data.split == "random":
        validation, test = (RANDOM_SHARE if one is None else one for one in (data.validation_share, data.test_share))
        return interactions.split_by(random_parts(interactions, validation, test, data.split_seed))
    if data.split == "everything":
        parts = np.zeros(len(interactions), dtype=np.uint8)
        draws = counter_rng.uniform(
            counter_rng.key("validation people", data.split_seed), counter_rng.user_keys(interactions.users)
        )
        drawn = (draws < (data.validation_share or 0.0)).numpy() & (np.diff(interactions.offsets) >= 2)
        parts[interactions.offsets[1:][drawn] - 1] = Part.VALIDATION
        return interactions.split_by(parts, interactions.tied())
    assert data.validation_from
    assert data.test_from
    begins = [since(interactions.timestamps, moment(one)) for one in (data.validation_from, data.test_from)]
    late = interactions.split_by(np.select(begins[::-1], [Part.TEST, Part.VALIDATION], Part.TRAIN).astype(np.uint8))
    known = np.diff(late.offsets) > 0  # who has no past cannot be ranked for
    validation_targets, test_targets = (one.keep(known[one.owners]) for one in (late.validation, late.test))
    return replace(late, validation=validation_targets, test=test_targets)


def random_parts(interactions: Interactions, validation: float, test: float, seed: int) -> NDArray[np.uint8]:
    """The part of each event, [n_events]: of each user's the shares asked for, rounded down, but one at least of those who have
    three; drawn by seed, user and item."""
    keys = counter_rng.user_keys(interactions.users).numpy()[interactions.owners]
    items = torch.from_numpy(interactions.items.copy())
    draws = counter_rng.mix(counter_rng.key("random split", seed), torch.from_numpy(keys), items).numpy()
    order = np.lexsort((draws, interactions.owners))
    lengths = np.diff(interactions.offsets)
    place = np.empty(len(order), dtype=np.int64)
    place[order] = (
        np.arange(len(order)) - interactions.offsets[:-1][interactions.owners]
    )  # users stand together in either order

    def held(share: float) -> NDArray[np.int64]:
        least = ((lengths >= 3) & (share > 0)).astype(np.int64)
        counts: NDArray[np.int64] = np.maximum((share * lengths + 1e-9).astype(np.int64), least)[interactions.owners]
        return counts

    n_test, n_validation = held(test), held(validation)
    return np.select([place < n_test, place < n_test + n_validation], [Part.TEST, Part.VALIDATION], Part.TRAIN).astype(
        np.uint8
    )


def since(timestamps: NDArray[np.int64], begin: Instant) -> NDArray[np.bool_]:
    """Which events happened at `begin` or later, [n_events].

    Against a date, a timestamp is one of seconds, milliseconds or microseconds since 1970, by its size: below 10^11 and 10^14.
    """
    if begin.unit == "data":
        return timestamps >= begin.value
    size = np.abs(timestamps)
    scale = np.select([size < 10**11, size < 10**14], [10**6, 10**3], 1)
    late: NDArray[np.bool_] = timestamps * scale >= begin.value
    return late
