"""Tests that the aspects shop is what it says: sides that features hide, people of known kinds, the same by seed."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import Options, convert, convert_aspects_shop, describe
from tessera.common.datasets.aspects_shop import EVENTS, MODALITY, N_ITEMS, draw_world
from tessera.common.errors import DataError


def test_people_buy_by_their_own_side_and_the_features_are_a_rotation_of_it(tmp_path: Path) -> None:
    about = convert_aspects_shop(tmp_path / "a", kinds=3, factors=4, people=120, seed=5)
    world, catalogue = draw_world(5, 3, 4, 120), load_catalogue(tmp_path / "a")
    assert (about["kinds"], about["mixed"], about["counts"]["interactions"]) == (3, False, 120 * EVENTS)
    np.testing.assert_allclose(catalogue.features[MODALITY].values, world.items, rtol=1e-6)
    sides = (world.items @ world.rotation).reshape(N_ITEMS, 3, 4)
    alike = (sides[world.bought].sum(1) ** 2).sum(2)  # of a person's items in each side, [people, kinds]
    kinds = pl.read_parquet(tmp_path / "a" / "users.parquet")["kind"].to_numpy()
    assert (kinds == np.arange(120) % 3).all()
    assert (alike.argmax(1) == kinds).mean() > 0.9
    interactions = load_interactions(tmp_path / "a", N_ITEMS)
    assert interactions.items.reshape(-1, EVENTS).tolist() == world.bought.tolist()


def test_mixed_tastes_are_shares_and_the_same_seed_gives_the_same_shop(tmp_path: Path) -> None:
    convert_aspects_shop(tmp_path / "a", people=50, mixed=True)
    shares = pl.read_parquet(tmp_path / "a" / "users.parquet").select(pl.col("^share_.*$")).to_numpy()
    np.testing.assert_allclose(shares.sum(1), 1)
    assert ((shares > 0.05).sum(1) > 1).mean() > 0.5
    first = convert("aspects-shop", Path("-"), tmp_path / "b", Options(shop_seed=3))
    again = convert_aspects_shop(tmp_path / "c", seed=3)
    other = convert_aspects_shop(tmp_path / "d", seed=4)
    hashes = [one["features"][MODALITY]["sha256"] for one in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]
    assert describe(tmp_path / "b")["split"]["test"] == first["counts"]["users"]
    with pytest.raises(DataError, match="needs kinds"):
        convert_aspects_shop(tmp_path / "e", kinds=0)
