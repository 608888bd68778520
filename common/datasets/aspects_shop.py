"""Generates the aspects shop: people of known kinds, of whom each goes by one side of the items.

An item has `kinds` times `factors` normal numbers, its sides one after the other. They are its features, after a rotation that
nobody is told. A person's taste is linear in the numbers of one kind or, where tastes are mixed, of several, by shares from a
Dirichlet. A person buys without replacement from softmax_i(SHARPNESS * utility_ui), utility_u standardised over items.

All kinds have the same mean taste and, added up, the same covariance: clustering people's tastes cannot tell them apart, how
alike their items are in a subspace can (docs/cohesion.md). The truth is in users.parquet, which training never reads.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import from_frame
from tessera.common.datasets.demo_shop import USERS, ordered_names
from tessera.common.datasets.raw import Options
from tessera.common.errors import DataError
from tessera.common.utils.tables import write_table

N_ITEMS, N_PEOPLE, KINDS, FACTORS = 1600, 600, 4, 6
EVENTS = 12
"""Purchases of a person; the last two are for validation and test."""
SHARPNESS, MIXTURE = 2.5, 0.4
MODALITY = "sides"
_START, _GAP = 1_700_000_000, 86_400


@dataclass(frozen=True)
class AspectsWorld:
    """What is drawn.

    `items` [n_items, dim] are public, `rotation` [dim, dim] is told to nobody, the columns of a kind side by side. `shares`
    [n_people, kinds] says how far each person goes by each kind, `bought` [n_people, EVENTS] what they bought, in order.
    """

    items: NDArray[np.float64]
    rotation: NDArray[np.float64]
    shares: NDArray[np.float64]
    bought: NDArray[np.int64]


def draw_world(
    seed: int = 0, kinds: int = KINDS, factors: int = FACTORS, people: int = N_PEOPLE, mixed: bool = False
) -> AspectsWorld:
    """Draw items, tastes and purchases. Raises `DataError` for a world without anything in it."""
    if min(kinds, factors, people) < 1:
        raise DataError(f"a shop needs kinds, factors and people, not {kinds}, {factors} and {people}")
    rng, dim = np.random.default_rng([seed, 17]), kinds * factors
    sides = rng.standard_normal((N_ITEMS, kinds, factors))
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    tastes = rng.standard_normal((people, kinds, factors))
    tastes /= np.linalg.norm(tastes, axis=2, keepdims=True)
    shares = rng.dirichlet(np.full(kinds, MIXTURE), people) if mixed else np.eye(kinds)[np.arange(people) % kinds]
    utility = np.einsum("uk,ukf,ikf->ui", shares, tastes, sides)
    utility *= SHARPNESS / utility.std(1, keepdims=True)
    taken = np.argsort(-(utility + rng.gumbel(size=utility.shape)), 1)[:, :EVENTS]
    return AspectsWorld(sides.reshape(N_ITEMS, dim) @ rotation.T, rotation, shares, rng.permuted(taken, axis=1))


def write_aspects_shop(_: Path, options: Options, folder: Path) -> dict[str, Any]:
    """Generate the shop as it is by default, drawn by the options' seed; return what dataset.json says about it."""
    return write_world(folder, seed=options.shop_seed)


def write_world(
    folder: Path,
    seed: int = 0,
    kinds: int = KINDS,
    factors: int = FACTORS,
    people: int = N_PEOPLE,
    mixed: bool = False,
) -> dict[str, Any]:
    """Generate a shop of any size below `folder`; return what dataset.json says about it. Raises `DataError`."""
    world = draw_world(seed, kinds, factors, people, mixed)
    items, users = (tuple(ordered_names(*named)) for named in (("item", N_ITEMS), ("person", people)))
    features = Features(world.items.astype(np.float32), np.ones(N_ITEMS, dtype=np.bool_), "generated")
    Catalogue(items, items, ("",) * N_ITEMS, ("",) * N_ITEMS, {MODALITY: features}).save(folder)
    from_frame(
        pl.DataFrame(
            {
                "user": np.repeat(users, EVENTS).tolist(),
                "item": world.bought.reshape(-1),
                "timestamp": np.tile(_START + _GAP * np.arange(EVENTS), people),
            }
        ),
        N_ITEMS,
    ).save(folder)
    shares = {f"share_{kind}": world.shares[:, kind] for kind in range(kinds)}
    write_table(folder / USERS, pl.DataFrame({"user": users, "kind": world.shares.argmax(1), **shares}))
    drawn = {"kinds": kinds, "factors": factors, "people": people, "mixed": mixed}
    return {"source": "generated", "seed": seed, **drawn, "filters": {}, "rules": ["generated: no filter applies"]}
