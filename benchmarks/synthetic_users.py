"""Makes datasets of many users for measurements of scale: Amazon Beauty (2014), and generated ones of any size.

The generated ones are as skewed as Beauty. The features of all are standard normal noise: as expensive as real ones.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from tessera.common.data.catalogue import Catalogue, Features, load_catalogue
from tessera.common.data.interactions import from_frame
from tessera.common.datasets import Options
from tessera.common.datasets.dataset_folder import replacing, write_description
from tessera.common.datasets.preprocess import prepare
from tessera.common.datasets.sequences import read_sequences
from tessera.common.utils import counter_rng

BEAUTY = "amazon-beauty-2014"
N_ITEMS, WIDTH = 12_101, 64
SHORTEST, LONGEST, TAIL = 5, 204, 2.11
SKEW, FLAT = 0.67, 30.0
SEED = 0


def write_beauty(source: Path, folder: Path) -> None:
    """Convert Beauty.txt of the folder `source`, and add the noise."""
    with replacing(folder) as made:
        about = prepare(read_sequences(source, Options()), Options(), made)
        _finish(made, load_catalogue(made), {"name": BEAUTY, "kind": "sequences", **about})


def write_synthetic_users(n_users: int, folder: Path) -> None:
    """Generate users who buy by popularity alone; a user buys the same however many others there are.

    A history has n items or more with chance (5 / n)^2.11, and an item's chance falls with its rank as (rank + 30)^-0.67:
    fitted to Beauty's quantiles of both. An item drawn twice counts once.
    """
    people = torch.arange(n_users)
    chances = 1 - counter_rng.uniform(counter_rng.key("length", SEED), people).double().numpy()
    lengths = np.minimum(SHORTEST * chances ** (-1 / TAIL), LONGEST).astype(np.int64)
    owners = np.repeat(np.arange(n_users), lengths)
    places = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    draws = (
        counter_rng.uniform(counter_rng.key("item", SEED), torch.from_numpy(owners), torch.from_numpy(places))
        .double()
        .numpy()
    )
    heights = np.cumsum((np.arange(N_ITEMS) + FLAT) ** -SKEW)
    items = np.searchsorted(heights / heights[-1], draws, side="right")
    events = pl.DataFrame({"user": owners, "item": items, "timestamp": places})
    names = tuple(f"item-{number:05d}" for number in range(N_ITEMS))
    nothing = ("",) * N_ITEMS
    with replacing(folder) as made:
        from_frame(events, N_ITEMS).save(made)
        _finish(made, Catalogue(names, nothing, nothing, nothing), {"name": folder.name, "kind": "generated"})


def _finish(folder: Path, catalogue: Catalogue, about: dict[str, Any]) -> None:
    """Write the catalogue with two modalities of standard normal noise [n_items, 64]: as dear as real ones, worth nothing."""
    rows, columns = torch.arange(len(catalogue))[:, None], torch.arange(WIDTH)
    features = {}
    for name in ("image", "text"):
        noise = counter_rng.normal(counter_rng.key("features", name, SEED), rows, columns).numpy()
        features[name] = Features(noise, np.ones(len(catalogue), dtype=bool), f"noise, seed {SEED}")
    replace(catalogue, features=features).save(folder)
    write_description(folder, about)
