"""Two catalogues that share nothing, and a model of one that ranks the other."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tessera.benchmarks.zero_shot import FEWEST, cut
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.errors import ConfigError
from tessera.server.live.content_views import content_views
from tessera.server.strategies.fedvlr import FedVLR
from tests.support.catalogues import small_catalogue, small_dataset

VIEWS = {"dim": 8, "id_dim": 8, "operators": [], "item_ids": False, "encoder": {"name": "bottleneck", "hidden": 4}}


def settings(**changes: object) -> Settings:
    return Settings.model_validate({"name": "other", "data": {"folder": "none"}, "views": VIEWS | changes})


def test_halves_share_neither_an_item_nor_a_person(tmp_path: Path) -> None:
    dataset = small_dataset(tmp_path / "small", 60, 66, planted=True)
    (dataset / "dataset.json").write_text(
        json.dumps({"name": "small", "kind": "table", "source": "", "filters": {}, "rules": []})
    )
    halves = cut(dataset, tmp_path, 0)
    catalogues = [load_catalogue(one) for one in (halves.first, halves.second)]
    events = [
        load_interactions(folder, len(one))
        for folder, one in zip((halves.first, halves.second), catalogues, strict=True)
    ]
    assert not set(catalogues[0].items) & set(catalogues[1].items)
    assert not set(events[0].users) & set(events[1].users)
    whole, own = load_catalogue(dataset), load_interactions(dataset, 66)
    had = {(own.users[owner], whole.items[item]) for owner, item in zip(own.owners, own.items, strict=True)}
    for catalogue, found in zip(catalogues, events, strict=True):
        assert len(found)
        assert min(np.bincount(found.items, minlength=len(catalogue)).min(), np.diff(found.offsets).min()) >= FEWEST
        assert {
            (found.users[owner], catalogue.items[item]) for owner, item in zip(found.owners, found.items, strict=True)
        } <= had


def test_items_are_shown_as_the_run_would_show_them_in_its_own_catalogue() -> None:
    """Half of the items, whose own mean is another, get the rows that they have among all."""
    whole, made = small_catalogue(40), FedVLR(settings(), small_catalogue(40))
    for parameter in made.generator.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    made.restore(made.state())
    rows = np.arange(0, 40, 2)
    found = content_views(settings(), made.state(), whole, whole.take(rows))
    torch.testing.assert_close(found, made.build_views()["views"][:, rows], rtol=1e-5, atol=1e-5)


def test_item_ids_say_nothing_of_other_items() -> None:
    asked = settings(item_ids=True)
    with pytest.raises(ConfigError, match="says nothing of others"):
        content_views(asked, FedVLR(asked, small_catalogue(40)).state(), small_catalogue(40), small_catalogue(20))


def test_it_ends_with_one_line_of_json() -> None:
    command = [sys.executable, "-m", "tessera.benchmarks.zero_shot", "--quick", "--seeds", "1"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told = json.loads(said.splitlines()[-1])
    assert list(told["rows"]) == ["random", "popularity", "content-all", "start of the other", "linear, the other",
                                  "adapted, the other", "adapted, its own"]  # fmt: skip
    assert all(0 < figure["mean"] <= 100 for row in told["rows"].values() for figure in row.values())
