"""One life of a federation over real processes: people and devices come and go, the catalogue grows, training goes on."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tessera.client.people.events import People
from tessera.client.recommend import Personal
from tessera.common.config.loading import parse_settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.folder_kinds import DATASET
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import convert_shop
from tessera.common.metrics.records import read_result
from tessera.common.utils.atomic_files import read_json, write_json
from tessera.deploy.executors import inline
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition
from tests.deploy.test_executors import silent
from tests.deploy.test_people_commands import run
from tests.support.commands import Start, commands, wait
from tests.support.lasting import Lasting

pytestmark = [pytest.mark.integration, pytest.mark.slow]
N_ITEMS, N_NEW, N_RETIRED, N_USERS, TOP = 1500, 200, 50, 200, 10
EARLY, JOINED, LATER = 8, 16, 20
"""Rounds until people come and go, until the catalogue grows, and of the run that then goes on."""
SETTINGS: dict[str, Any] = {
    "name": "life",
    "data": {"folder": "shop"},
    "device": "cpu",
    "views": {"operators": [], "dim": 64, "id_dim": 64},
    "local": {
        "backbone": "history", "loss": "softmax", "history_mask": 0.5, "learning_rate": 0.01, "weight_decay": 3.0,
    },
    "server": {"optimizer": "adam", "learning_rate": 0.01, "weight_decay": 3.0},
    "evaluation": {"every": 5, "ks": [10], "baselines": False},
    "federation": {"nodes": 3, "min_nodes": 2, "timeout": 60},
    "privacy": {"secure": False},
}  # fmt: skip


@pytest.fixture
def start() -> Iterator[Start]:
    with commands() as starter:
        yield starter


class World:
    """A shop as it will be, and the dataset of before: without the new items, and without the last person."""

    def __init__(self, folder: Path) -> None:
        self.whole, self.before = folder / "whole", folder / "shop"
        convert_shop(self.whole, N_ITEMS + N_NEW, N_USERS)
        self.catalogue = load_catalogue(self.whole)
        self.bought = load_interactions(self.whole, len(self.catalogue))
        self.catalogue.take(np.arange(N_ITEMS)).save(self.before)
        self.bought.take(np.arange(N_USERS - 1)).of_first(N_ITEMS).save(self.before)
        about = read_json(self.whole / DATASET)
        write_json(self.before / DATASET, about | {"counts": about["counts"] | {"items": N_ITEMS}})

    @property
    def comer(self) -> str:
        """Who joins later."""
        return self.bought.users[-1]

    def events(self, user: str, new: bool) -> list[str]:
        """What somebody bought of the new items, or of the others: ids, the first bought first."""
        row = self.bought.users.index(user)
        items = self.bought.items[self.bought.offsets[row] : self.bought.offsets[row + 1]]
        return [self.catalogue.items[item] for item in items if (item >= N_ITEMS) == new]

    def new_items(self) -> Path:
        """The table of the new items, whose pictures lie beside it."""
        rows = slice(N_ITEMS, N_ITEMS + N_NEW)
        shown = self.catalogue
        columns = {"item": shown.items, "title": shown.titles, "text": shown.texts, "image": shown.images}
        path = self.whole / "new.csv"
        pl.DataFrame({name: list(values[rows]) for name, values in columns.items()}).write_csv(path)
        return path


def add_events(device: Path, user: str, items: list[str], since: int = 1_800_000_000) -> None:
    for at, item in enumerate(items):
        People(device).add_event(user, item, since + at)


def test_a_federation_lives(start: Start, tmp_path: Path) -> None:
    world = World(tmp_path)
    devices = partition(world.before, tmp_path / "devices", 4)
    one, two, three, late = devices
    lasting = Lasting(start, world.before, tmp_path, devices, SETTINGS)
    for device in (one, two, three):
        lasting.join(device)
    submit = lasting.submit()
    assert wait(lambda: len(lasting.rounds()) >= EARLY, 300), submit.told()

    # A person joins, another is forgotten, a device comes.
    run("device", "add-person", world.comer, "--data-dir", one)
    add_events(one, world.comer, world.events(world.comer, new=False))
    gone = People(two).users()[0]
    run("device", "forget", gone, "--yes", "--data-dir", two)
    lasting.join(late)
    assert wait(lambda: len(lasting.rounds()) >= JOINED and lasting.rounds()[-1].nodes == 4, 300), submit.told()

    # 200 items come and 50 go: the run ends, and the next one goes on with them; devices get them from the server.
    retired = [world.catalogue.items[row] for row in range(0, N_ITEMS, N_ITEMS // N_RETIRED)]
    (tmp_path / "retired.txt").write_text("\n".join(retired))
    run("data", "catalogue", "add", world.before, world.new_items())
    run("data", "catalogue", "retire", world.before, "--file", tmp_path / "retired.txt")
    following = f"{lasting.name}-2"
    assert wait(lambda: len(lasting.rounds(following)) >= 2, 300), submit.told()
    for device in devices:
        held = load_catalogue(device, modalities=False)
        assert (len(held), int(held.retired.sum())) == (N_ITEMS + N_NEW, len(retired))
    for device in (one, two):  # where people buy of the new ones
        for user in People(device).users():
            add_events(device, user, world.events(user, new=True))
    assert wait(lambda: len(lasting.rounds(following)) >= LATER, 600), submit.told()
    run("federate", "stop", lasting.name, "--dir", lasting.server)
    assert submit.ends() == 0, submit.told()

    fits_and_is_never_retired(world, (three, late), set(retired))
    assert gone not in People(two).users()
    moves(world.comer, one, three, tmp_path / "archive.zip")
    reaches_what_a_new_run_does(lasting, following, tmp_path)


def fits_and_is_never_retired(world: World, devices: tuple[Path, ...], retired: set[str]) -> None:
    """New items are at the top for those who would buy them, three times as often as by chance; retired ones are in no list."""
    found, wanted = 0, 0
    for device in devices:
        personal = Personal.open(device)
        for user in People(device).users():
            listed = [one.item for one in personal.recommend(user, N_ITEMS + N_NEW)[0]]
            assert not retired & set(listed)
            new, liked = (
                [item for item in listed if world.catalogue.items.index(item) >= N_ITEMS],
                world.events(user, True),
            )
            assert len(new) == N_NEW
            found, wanted = found + len(set(new[:TOP]) & set(liked)), wanted + len(liked)
    print(
        f"recall of planted affinities at {TOP} of {N_NEW} new items: {found / wanted:.3f}, by chance {TOP / N_NEW:.3f}"
    )
    assert found / wanted >= 3 * TOP / N_NEW


def moves(user: str, here: Path, there: Path, archive: Path) -> None:
    """On another device a person has the same list."""
    run("device", "export", user, archive, "--data-dir", here)
    run("device", "import", archive, "--data-dir", there)
    lists = [json.loads(run("recommend", "--user", user, "--json", "--data-dir", one)) for one in (here, there)]
    assert lists[0] == lists[1]
    assert lists[0]["based_on"] == "training"


def reaches_what_a_new_run_does(lasting: Lasting, name: str, folder: Path) -> None:
    """The same people and items from the start, in runs with two seeds: what was continued is within their spread."""
    scratch = []
    for seed in (0, 1):
        run_dir = folder / f"scratch-{seed}"
        copies = []
        for number, device in enumerate(lasting.devices):
            copies.append(run_dir / "devices" / f"node-{number}")
            copies[-1].mkdir(parents=True)
            for table in ("items.parquet", "interactions.parquet", "people.json"):
                if (device / table).exists():
                    shutil.copy(device / table, copies[-1] / table)
        rounds = {"rounds": JOINED + LATER, "seed": seed, "federation": {"nodes": 4}}
        job = Job(parse_settings(SETTINGS | rounds, "test"), lasting.dataset, tuple(copies), run_dir)
        inline.execute(job, silent)
        scratch.append({str(metric): value for metric, value in read_result(run_dir).scores.items()})
    (stands,) = (one for one in lasting.status()["runs"] if one["name"] == name)
    reached = [one[stands["metric"]] for one in scratch]
    print(f"{stands['metric']}: continued {stands['best']:.2f}, from the start {reached[0]:.2f} and {reached[1]:.2f}")
    spread = max(abs(reached[0] - reached[1]), 1.0)
    assert stands["best"] >= min(reached) - spread
