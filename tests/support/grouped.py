"""People of four groups who take items of their own group, and contents that hint at the group: what baselines must find."""

import numpy as np

from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import Split
from tests.support.splits import split_of

N_GROUPS, N_USERS, N_ITEMS = 4, 80, 120


def grouped_split() -> Split:
    """Users of four groups who take mostly the more popular items of their own group's thirty; 8 train, 1 + 1 held out."""
    rng = np.random.default_rng(0)
    chances = np.arange(N_ITEMS // N_GROUPS, 0, -1) ** 1.5
    own = rng.permuted(np.arange(N_ITEMS)).reshape(N_GROUPS, -1)
    taken = [rng.choice(own[user % N_GROUPS], 10, replace=False, p=chances / chances.sum()) for user in range(N_USERS)]
    taken = [rng.permuted(items) for items in taken]
    return split_of(
        [items[:8] for items in taken], N_ITEMS, [items[8] for items in taken], [items[9] for items in taken]
    )


def grouped_catalogue(split: Split) -> Catalogue:
    """Features of two widths that hint at the group; some items have no picture."""
    rng = np.random.default_rng(1)
    groups = np.zeros((N_ITEMS, N_GROUPS))
    np.add.at(groups, (split.train_items, np.repeat(np.arange(N_USERS), 8) % N_GROUPS), 1)
    hints = groups / np.maximum(groups.sum(1, keepdims=True), 1)
    present = rng.random(N_ITEMS) < 0.9
    features = {
        name: Features(
            (hints @ rng.normal(size=(N_GROUPS, width)) + rng.normal(size=(N_ITEMS, width))).astype("f4"), mask, name
        )
        for name, width, mask in (("image", 12, present), ("text", 7, np.ones(N_ITEMS, dtype=bool)))
    }
    names = tuple(f"i{n}" for n in range(N_ITEMS))
    return Catalogue(names, names, ("",) * N_ITEMS, ("",) * N_ITEMS, features)
