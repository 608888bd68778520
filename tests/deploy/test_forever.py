"""A federation that keeps training: it waits for devices, takes new ones in, publishes, shows how it stands, and is stopped."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tessera.deploy.federation.superlink import Server
from tessera.deploy.provisioning.partition import partition
from tessera.server.run_folder import RunFolder
from tests.deploy.test_people_commands import run
from tests.support.commands import Start, commands, wait
from tests.support.lasting import Lasting
from tests.support.nodes import held

pytestmark = pytest.mark.integration
SETTINGS: dict[str, Any] = {
    "name": "lasting",
    "data": {"folder": "shop"},
    "rounds": 1,
    "device": "cpu",
    "views": {"dim": 8, "id_dim": 8},
    "local": {"backbone": "history", "learning_rate": 0.01},
    "evaluation": {"every": 1, "ks": [10], "baselines": False, "patience": 1},
    "federation": {"nodes": 2, "min_nodes": 2, "timeout": 20},
    "privacy": {"secure": False},
}


def saved(folder: Path) -> int:
    """The round of a run's newest checkpoint."""
    found = RunFolder.look(folder).newest()
    return found[0] if found else 0


@pytest.fixture
def start() -> Iterator[Start]:
    with commands() as starter:
        yield starter


def test_devices_come_and_go_and_the_run_waits_for_them(start: Start, shop: Path, tmp_path: Path) -> None:
    lasting = Lasting(start, shop, tmp_path, partition(shop, tmp_path / "devices", 3), SETTINGS)
    one, other, late = lasting.devices
    lasting.join(one)
    submit = lasting.submit()
    leaving = lasting.join(other)
    assert wait(lambda: len(lasting.rounds()) >= 3), submit.told()  # more than `rounds`, and than patience allows
    lasting.join(late)
    assert wait(lambda: bool(lasting.rounds()) and lasting.rounds()[-1].nodes == 3), submit.told()

    leaving.popen.terminate()
    leaving.ends()
    assert wait(lambda: lasting.rounds()[-1].nodes == 2), submit.told()
    status = lasting.status()
    assert [device["state"] for device in status["devices"]].count("online") == 2
    (stands,) = status["runs"]
    assert (stands["name"], stands["state"], stands["forever"]) == ("lasting", "running", True)
    assert 0 < stands["best_round"] <= status["published"]["round"]
    assert "for ever" in run("federate", "status", "--dir", lasting.server)

    address = f"127.0.0.1:{Server.load(lasting.server).model_port}"
    where = ("--server", address, "--ca", lasting.server / "ca.crt", "--data-dir", tmp_path / "stranger")
    assert json.loads(run("device", "pull", "--json", *where))["items"] == 80

    assert "stopped with all its rounds" in run("federate", "stop", "lasting", "--dir", lasting.server)
    assert submit.ends() == 0, submit.told()
    assert lasting.status()["runs"][0]["state"] == "stopped"
    before = lasting.rounds()[-1].round
    assert saved(tmp_path / "runs" / "lasting") == before
    assert "has ended already" in run("federate", "stop", "lasting", "--dir", lasting.server, fails=True)
    again = lasting.submit("--resume")
    assert wait(lambda: lasting.rounds()[-1].round > before), again.told()
    with held(one):  # a round that does not end is not waited for
        told = run("federate", "stop", "lasting", "--dir", lasting.server, "--wait", "2")
    assert "stopped in a round, which is lost" in told
    assert again.ends() == 0, again.told()
    assert saved(tmp_path / "runs" / "lasting") <= lasting.rounds()[-1].round
    alone = lasting.submit("--resume")
    one_more = lasting.rounds()[-1].round
    assert wait(lambda: lasting.rounds()[-1].round > one_more), alone.told()
    alone.popen.terminate()
    assert alone.ends() != 0
    assert "no run 'other'" in run("federate", "stop", "other", "--dir", lasting.server, fails=True)
