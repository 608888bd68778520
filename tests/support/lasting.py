"""A server with a run that goes on until it is stopped, and devices that join and leave: real processes on this machine."""

import json
from pathlib import Path
from typing import Any

import yaml

from tessera.client.owner.policy import Policy, write_policy
from tessera.common.metrics.records import RoundRecord, read_records
from tessera.deploy.federation.processes import free_port
from tessera.deploy.federation.superlink import Control, Server
from tessera.deploy.federation.supernode import public_key
from tests.deploy.test_people_commands import run
from tests.support.commands import Command, Start, wait


class Lasting:
    """A server with a run that does not end, and devices that come and go."""

    def __init__(
        self, start: Start, dataset: Path, folder: Path, devices: tuple[Path, ...], settings: dict[str, Any]
    ) -> None:
        self.start, self.dataset, self.folder, self.server = start, dataset, folder, folder / "server"
        self.devices, self.name = devices, settings["name"]
        for device in self.devices:  # a handful of people each, on a machine of ours
            write_policy(device, Policy(people=1, newcomers="any"))
        run("federate", "certificates", self.server)
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        port = free_port()
        self.ports = ("--host", "127.0.0.1", "--port", port, "--control-port", free_port(), "--model-port", free_port())
        self.address = f"127.0.0.1:{port}"
        self.serve()

    def serve(self) -> None:
        """Start the server, or start it again after `served` was killed."""
        self.served = self.start(self.folder / "server.log", "federate", "server", "--dir", self.server, *self.ports)
        self.served.says("Devices join")
        assert wait(self._answers)

    def _answers(self) -> bool:
        try:
            return Control(Server.load(self.server)).devices() is not None
        except Exception:
            return False

    def join(self, device: Path) -> Command:
        control = Control(Server.load(self.server))
        control.register(public_key(device))
        where = ("--server", self.address, "--data-dir", device, "--ca", self.server / "ca.crt")
        return self.start(self.folder / f"{device.name}.log", "federate", "join", *where)

    def submit(self, *more: str) -> Command:
        where = ("--dir", self.server, "--catalogue", self.dataset, "--runs", self.folder / "runs", "--forever")
        return self.start(
            self.folder / "submit.log", "federate", "submit", self.folder / "settings.yaml", *where, *more
        )

    def rounds(self, name: str = "") -> list[RoundRecord]:
        path = self.folder / "runs" / (name or self.name)
        if not (path / "metrics.jsonl").exists():
            return []
        return [line for line in read_records(path) if isinstance(line, RoundRecord)]

    def status(self) -> dict:
        return json.loads(run("federate", "status", "--dir", self.server, "--json"))
