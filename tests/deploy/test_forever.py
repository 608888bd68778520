"""A federation that keeps training: it waits for devices, takes new ones in, publishes, shows how it stands, and is stopped."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tessera.client.owner.policy import Policy, write_policy
from tessera.common.metrics.records import RoundRecord, read_records
from tessera.deploy.federation.processes import free_port
from tessera.deploy.federation.superlink import Control, Server
from tessera.deploy.federation.supernode import public_key
from tessera.deploy.provisioning.partition import partition
from tests.deploy.test_people_commands import run
from tests.support.commands import Command, Start, commands, wait

pytestmark = pytest.mark.integration
SETTINGS = {
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


@pytest.fixture
def start() -> Iterator[Start]:
    with commands() as starter:
        yield starter


class Lasting:
    """A server with a run that does not end, and devices that come and go."""

    def __init__(self, start: Start, shop: Path, folder: Path, devices: int) -> None:
        self.start, self.folder, self.server = start, folder, folder / "server"
        self.devices = partition(shop, folder / "devices", devices)
        for device in self.devices:  # a handful of people each, on a machine of ours
            write_policy(device, Policy(people=1, newcomers="any"))
        run("federate", "certificates", self.server)
        (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
        port = free_port()
        ports = ("--host", "127.0.0.1", "--port", port, "--control-port", free_port(), "--model-port", free_port())
        start(folder / "server.log", "federate", "server", "--dir", self.server, *ports).says("Devices join")
        self.address = f"127.0.0.1:{port}"
        assert wait(self._answers)

    def _answers(self) -> bool:
        try:
            return Control(Server.load(self.server)).devices() == []
        except Exception:
            return False

    def join(self, device: Path) -> Command:
        control = Control(Server.load(self.server))
        control.register(public_key(device))
        where = ("--server", self.address, "--data-dir", device, "--ca", self.server / "ca.crt")
        return self.start(self.folder / f"{device.name}.log", "federate", "join", *where)

    def submit(self, shop: Path, *more: str) -> Command:
        where = ("--dir", self.server, "--catalogue", shop, "--runs", self.folder / "runs", "--forever")
        return self.start(
            self.folder / "submit.log", "federate", "submit", self.folder / "settings.yaml", *where, *more
        )

    @property
    def rounds(self) -> list[RoundRecord]:
        path = self.folder / "runs" / "lasting"
        if not (path / "metrics.jsonl").exists():
            return []
        return [line for line in read_records(path) if isinstance(line, RoundRecord)]

    def status(self) -> dict:
        return json.loads(run("federate", "status", "--dir", self.server, "--json"))


def test_devices_come_and_go_and_the_run_waits_for_them(start: Start, shop: Path, tmp_path: Path) -> None:
    lasting = Lasting(start, shop, tmp_path, 3)
    one, other, late = lasting.devices
    lasting.join(one)
    submit = lasting.submit(shop)
    leaving = lasting.join(other)
    assert wait(lambda: len(lasting.rounds) >= 3), submit.told()  # more than `rounds`, and than patience allows
    lasting.join(late)
    assert wait(lambda: bool(lasting.rounds) and lasting.rounds[-1].nodes == 3), submit.told()

    leaving.popen.terminate()
    leaving.ends()
    assert wait(lambda: lasting.rounds[-1].nodes == 2), submit.told()
    status = lasting.status()
    assert [device["state"] for device in status["devices"]].count("online") == 2
    (stands,) = status["runs"]
    assert (stands["name"], stands["state"], stands["forever"]) == ("lasting", "running", True)
    assert stands["best_round"] == status["published"]["round"] > 0
    assert "for ever" in run("federate", "status", "--dir", lasting.server)

    address = f"127.0.0.1:{Server.load(lasting.server).model_port}"
    where = ("--server", address, "--ca", lasting.server / "ca.crt", "--data-dir", tmp_path / "stranger")
    assert json.loads(run("device", "pull", "--json", *where))["items"] == 80

    run("federate", "stop", "lasting", "--dir", lasting.server)
    assert submit.ends() == 0, submit.told()
    assert lasting.status()["runs"][0]["state"] == "stopped"
    before = lasting.rounds[-1].round
    again = lasting.submit(shop, "--resume")
    assert wait(lambda: lasting.rounds[-1].round > before), again.told()
    again.popen.terminate()
    assert again.ends() != 0
    assert "no run 'other'" in run("federate", "stop", "other", "--dir", lasting.server, fails=True)
