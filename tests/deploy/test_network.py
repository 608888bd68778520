"""A federation of machines with addresses of their own: three network namespaces on one bridge. Needs root and iproute2."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from tessera.deploy.federation.superlink import CONTROL_PORT, PORT
from tessera.deploy.provisioning.partition import partition
from tessera.deploy.provisioning.trial import answer_for_few
from tests.deploy.test_grpc import SETTINGS, left_behind
from tests.support.commands import TESSERA, Command, Start, commands, wait
from tests.support.metrics import read_metrics
from tests.support.nodes import held

pytestmark = pytest.mark.integration
ADDRESSES = {"server": "10.77.0.1", "one": "10.77.0.2", "two": "10.77.0.3", "three": "10.77.0.4"}
DEVICES = ("one", "two", "three")
ROUNDS = 20
BACK = 30.0
"""Seconds after which a device is back at the latest that was away for half a minute."""
KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def unable() -> str:
    """Why namespaces cannot be made here, "" when they can."""
    if shutil.which("ip") is None:
        return "`ip` is missing: install iproute2"
    if os.geteuid() != 0:
        return "only root may make network namespaces: run it with sudo"
    name = f"tessera-{uuid4().hex[:6]}"
    try:
        ip("netns", "add", name)
        ip("netns", "del", name)
    except subprocess.CalledProcessError as error:
        return f"the kernel makes no network namespaces here: {error.stderr.strip()}"
    return ""


class Network:
    """Machines by name, each in a namespace with one address, and a bridge between them in a namespace of its own.

    Nothing is changed outside these namespaces, and no two runs share a name.
    """

    def __init__(self) -> None:
        self.prefix = f"tessera-{uuid4().hex[:6]}"
        ip("netns", "add", self.prefix)
        ip("-n", self.prefix, "link", "add", "bridge", "type", "bridge")
        ip("-n", self.prefix, "link", "set", "bridge", "up")
        for name, address in ADDRESSES.items():
            space = f"{self.prefix}-{name}"
            ip("netns", "add", space)
            ip("-n", self.prefix, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", self.prefix, "link", "set", name, "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "lo", "up")
            self.link(name, "up")

    def link(self, name: str, state: str) -> None:
        """Connect a machine ("up"), or cut it off ("down")."""
        ip("-n", f"{self.prefix}-{name}", "link", "set", "eth0", state)

    def on(self, name: str) -> list[str]:
        """What starts a command on a machine."""
        return ["ip", "netns", "exec", f"{self.prefix}-{name}"]

    def close(self) -> None:
        """Remove all of it, as far as it was made."""
        for space in [self.prefix, *(f"{self.prefix}-{name}" for name in ADDRESSES)]:
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)


@dataclass
class Federation:
    """A server that runs, and three devices that have joined it and answer in secure sums."""

    network: Network
    folder: Path
    start: Start
    devices: dict[str, Command]

    def ask(self, *arguments: str) -> str:
        """What the server's operator is told by `tessera federate`."""
        command = [*self.network.on("server"), TESSERA, "federate", arguments[0], "--dir", "server", *arguments[1:]]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=150, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self) -> dict[str, str]:
        """Each device's state, by the folder its key was registered from."""
        listed = json.loads(self.ask("list", "--json"))
        return {Path(device["file"]).parent.name: device["state"] for device in listed}

    def reaches(self, name: str, port: int) -> bool:
        """Whether a machine can connect to a port of the server."""
        knock = [*self.network.on(name), sys.executable, "-c", KNOCK, ADDRESSES["server"], str(port)]
        return subprocess.run(knock, check=False, capture_output=True).returncode == 0

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds of the run so far."""
        return [line for line in read_metrics(self.folder / "runs" / "small") if line["kind"] == "round"]

    def round_after(self, number: int, nodes: int) -> dict[str, Any]:
        """Wait for a round later than `number` in which so many nodes took part, and return it."""

        def found() -> list[dict[str, Any]]:
            return [line for line in self.rounds() if line["round"] > number and line["nodes"] == nodes]

        assert wait(lambda: bool(found())), self.rounds()
        return found()[0]


@pytest.fixture(scope="module")
def federation(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    if reason := unable():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("network")
    network = Network()
    try:
        with commands() as start:
            made = start(folder / "made.log", "federate", "certificates", "server", "--host", ADDRESSES["server"])
            assert made.ends() == 0, made.told()
            start(folder / "server.log", "federate", "server", "--dir", "server", by=network.on("server")).says(
                "Uvicorn running"
            )
            federation = Federation(network, folder, start, {})
            for name, dealt in zip(DEVICES, partition(shop, folder, len(DEVICES)), strict=True):
                answer_for_few([dealt.rename(folder / name)])
                assert start(folder / "key.log", "federate", "key", name).ends() == 0
                federation.ask("register", f"{name}/node.key.pub")
                join = ["--server", f"{ADDRESSES['server']}:{PORT}", "--data-dir", name, "--ca", "server/ca.crt"]
                federation.devices[name] = start(folder / f"{name}.log", "federate", "join", *join, by=network.on(name))
                federation.devices[name].says("SuperNode ID")
            yield federation
        assert wait(lambda: not left_behind(folder))
    finally:
        network.close()


@pytest.mark.network
def test_devices_reach_the_server_by_its_address_and_nobody_its_control_port(federation: Federation) -> None:
    """That they have joined means that the certificate holds the address. Who reaches the control port may run code."""
    assert federation.states() == dict.fromkeys(DEVICES, "online")
    assert federation.reaches("one", PORT)
    assert not federation.reaches("one", CONTROL_PORT)
    assert federation.reaches("server", PORT)


@pytest.mark.network
def test_a_device_that_is_cut_off_misses_rounds_and_is_back_by_itself_and_a_revoked_one_is_not(
    federation: Federation, shop: Path
) -> None:
    """Cut off, a device's round ends without it after some 20 s, with its number; what the others returned counts. Connected
    again it takes part without anybody doing anything. Revoked, it ends and is kept out, what it learnt stays with it, and the
    run comes to its end without it, in sums of the other two. One of these is held still where rounds, which are quick, are to
    wait."""
    settings = SETTINGS | {
        "rounds": ROUNDS,
        "federation": {"nodes": len(DEVICES)},
        "evaluation": {"every": ROUNDS, "ks": [10], "baselines": False},
    }
    (federation.folder / "config.yaml").write_text(yaml.safe_dump(settings))
    submit = ["config.yaml", "--dir", "server", "--catalogue", shop]
    run = federation.start(
        federation.folder / "submit.log", "federate", "submit", *submit, by=federation.network.on("server")
    )
    assert federation.round_after(0, nodes=3)["round"] == 1
    assert read_metrics(federation.folder / "runs" / "small")[0]["groups"] == 1, "in secure sums"

    federation.network.link("two", "down")
    without = federation.round_after(0, nodes=2)
    with held(federation.folder / "one"):
        number = next(one["number"] for one in json.loads(federation.ask("list", "--json")) if one["file"][:3] == "two")
        assert number in str(without["troubles"])
        federation.network.link("two", "up")
        assert wait(lambda: federation.states() == dict.fromkeys(DEVICES, "online"), BACK)
    together = federation.round_after(without["round"], nodes=3)

    with held(federation.folder / "one"):
        assert f"{number}: revoked" in federation.ask("revoke", "two/node.key.pub")
    federation.round_after(together["round"], nodes=2)
    assert run.ends() == 0, run.told()
    assert [line["round"] for line in federation.rounds()] == list(range(1, ROUNDS + 1))
    federation.devices["two"].says("the server refuses this device, which it took in before: its key was revoked")
    assert federation.devices["two"].ends() == 1
    assert federation.states() == {"one": "online", "two": "revoked", "three": "online"}
    assert all(any((federation.folder / name / "private").rglob("*.safetensors")) for name in DEVICES)
    print(*((line["round"], line["nodes"], round(line["seconds"], 1)) for line in federation.rounds()))
