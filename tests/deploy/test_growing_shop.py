"""A shop whose catalogue grows: training goes on, new items reach the people whose taste they fit, retired ones nobody."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tessera.client.recommend import Personal
from tessera.common.config.loading import parse_settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import Interactions, load_interactions
from tessera.common.datasets import convert_shop
from tessera.common.datasets.catalogue_versions import add_items, retire_items
from tessera.common.datasets.dataset_folder import write_description
from tessera.common.datasets.new_content import NewContent
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.executors.run import make_job, run_job

N_ITEMS, N_FIRST, GONE = 240, 200, (3, 50, 111)


def settings(name: str, rounds: int) -> Any:
    content = {
        "name": name,
        "data": {"folder": "shop"},
        "rounds": rounds,
        "views": {"operators": [], "spectral_rounds": 5, "spectral_scale": 20},
        "local": {"backbone": "history", "learning_rate": 0.001},
        "server": {"learning_rate": 0.003, "weight_decay": 1.0},
        "evaluation": {"every": 5},
    }
    return parse_settings(content, "test")


def first_half(whole: Path, folder: Path) -> Interactions:
    """The shop as it was when it had fewer items; return everybody's purchases, those of later items too."""
    catalogue, events = load_catalogue(whole), load_interactions(whole, N_ITEMS)
    catalogue.take(np.arange(N_FIRST)).save(folder)
    events.of_first(N_FIRST).save(folder)
    about = read_json(whole / "dataset.json")
    write_description(folder, {name: about[name] for name in ("name", "kind", "source", "rules")})
    items = pl.read_parquet(whole / "items.parquet")[N_FIRST:]
    items.write_csv(whole / "later.csv")
    return events


def auc(places: list[int], fitting: list[bool]) -> float:
    """Chance that an item that fits stands before one that does not, [n] places each."""
    where, fits = np.array(places), np.array(fitting)
    return float((where[fits][:, None] < where[~fits]).mean())


def test_new_items_reach_those_whom_they_fit_and_retired_ones_nobody(tmp_path: Path) -> None:
    whole, shop = tmp_path / "whole", tmp_path / "shop"
    convert_shop(whole, N_ITEMS, 100)
    events = first_half(whole, shop)
    run_job(make_job(settings("first", 10), shop, tmp_path / "first", False, False), "inline", lambda line: None)
    add_items(shop, NewContent.read(whole / "later.csv"))
    retire_items(shop, GONE)
    job = make_job(settings("second", 3), shop, tmp_path / "second", False, False, tmp_path / "first")
    run_job(job, "inline", lambda line: None)
    personal, catalogue = Personal.open(job.devices[0]), load_catalogue(shop)
    assert catalogue.items == load_catalogue(whole).items
    found = []
    for row, user in enumerate(events.users):
        bought = set(events.items[events.offsets[row] : events.offsets[row + 1]].tolist())
        listed = [catalogue.items.index(one.item) for one in personal.recommend(user, N_ITEMS)[0]]
        assert not set(GONE) & set(listed)
        new = [place for place, item in enumerate(listed) if item >= N_FIRST]
        assert len(new) == N_ITEMS - N_FIRST
        fits = [listed[place] in bought for place in new]
        if any(fits):
            found.append(auc(new, fits))
    assert np.mean(found) > 0.6
