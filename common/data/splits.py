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
from tessera.common.config.settings import DataSettings
from tessera.common.data.interactions import Interactions, Part, Split
from tessera.common.utils import counter_rng


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
    else:
        split = interactions.split(given=data.split == "given")
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
