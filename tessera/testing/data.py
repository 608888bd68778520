"""Makes small catalogues and people for tests."""

import numpy as np

from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import Interactions, Split


def small_catalogue(n_items: int, seed: int = 0) -> Catalogue:
    """Items with two modalities of different width; some lack a picture."""
    rng = np.random.default_rng(seed)
    present = rng.random(n_items) < 0.9
    features = {
        "image": Features(rng.normal(size=(n_items, 12)).astype(np.float32), present, "random-12"),
        "text": Features(rng.normal(size=(n_items, 7)).astype(np.float32), np.ones(n_items, dtype=bool), "random-7"),
    }
    names = tuple(f"i{n:03d}" for n in range(n_items))
    return Catalogue(names, tuple(f"Title {name}" for name in names), ("",) * n_items, ("",) * n_items, features)


def small_interactions(n_users: int, n_items: int, seed: int = 0) -> Interactions:
    """Users with ragged histories of 3 to 15 events."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 16, size=n_users)
    items = np.concatenate([rng.permutation(n_items)[:length] for length in lengths])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    users = tuple(f"person-{n}" for n in range(n_users))
    times = np.concatenate([np.arange(length) for length in lengths])
    return Interactions(users, offsets, items, times, n_items)


def small_split(n_users: int, n_items: int, seed: int = 0) -> Split:
    """The same users, last two events held out."""
    return small_interactions(n_users, n_items, seed).split()
