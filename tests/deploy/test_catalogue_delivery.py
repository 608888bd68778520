"""Devices whose catalogue is an earlier version of the run's are brought up to date in the run, with masks and without."""

from pathlib import Path

import numpy as np
import pytest

from tessera.client.people.events import People
from tessera.common.data.catalogue import ITEMS, Catalogue, load_catalogue, save_items
from tessera.common.errors import RunError
from tessera.deploy.executors import inline
from tests.deploy.test_executors import assert_same_run, silent
from tests.deploy.test_secure_runs import SECURE, rounds
from tests.support.catalogues import small_job

N_NODES, CHANGES = 4, {"planted": True, "rounds": 2}


def hold_older(device: Path, n_items: int) -> None:
    """Let a device hold the catalogue of when there were fewer items, one with another title."""
    older = load_catalogue(device, modalities=False).take(np.arange(n_items))
    titles = ("what it was called", *older.titles[1:])
    save_items(Catalogue(older.items, titles, older.texts, older.images), device)


@pytest.mark.parametrize("privacy", [{}, SECURE], ids=["plain", "secure"])
def test_a_device_gets_what_changed_and_answers_in_the_same_round(tmp_path: Path, privacy: dict) -> None:
    """The run is the same, bit for bit, as one in which all devices had the catalogue from the start."""
    jobs = [small_job(tmp_path, name, N_NODES, privacy=privacy, **CHANGES) for name in ("whole", "older")]
    shown = load_catalogue(jobs[0].catalogue, modalities=False)
    device = jobs[1].devices[0]
    people = People(device)
    last = max(people.catalogue.items.index(one.item) for user in people.users() for one in people.events(user))
    assert last < len(shown) - 1, "an item is new to this device"
    hold_older(device, last + 1)
    for job in jobs:
        inline.execute(job, silent)
    assert [line["nodes"] for line in rounds(tmp_path / "older")] == [N_NODES] * 2
    assert_same_run(tmp_path / "whole", tmp_path / "older", 0)
    held = load_catalogue(device, modalities=False)
    assert (held.items, held.titles, held.sha256) == (shown.items, shown.titles, shown.sha256)


def test_a_device_with_other_items_is_named_and_keeps_them(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", N_NODES, **CHANGES)
    own = load_catalogue(job.devices[1], modalities=False)
    save_items(own.take(np.roll(np.arange(len(own)), 1)), job.devices[1])
    before = (job.devices[1] / ITEMS).read_bytes()
    with pytest.raises(
        RunError, match="node 2 holds 66 items that are not the first of this run's 66: use one dataset"
    ):
        inline.execute(job, silent)
    assert (job.devices[1] / ITEMS).read_bytes() == before
