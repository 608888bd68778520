"""A federation of real processes, as its operators run it: one server and three devices, which answer in secure sums, to be
killed, held and cut off."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from tessera.deploy.federation.superlink import Control, Server
from tessera.deploy.provisioning.partition import partition
from tessera.deploy.provisioning.trial import answer_for_few
from tests.deploy.test_grpc import left_behind
from tests.faults.forwarder import Forwarder
from tests.support.catalogues import small_dataset, small_settings
from tests.support.metrics import read_metrics
from tests.support.nodes import held, node_of

TESSERA = Path(sys.executable).parent / "tessera"
START = 150.0
"""Seconds that something may take to begin, where many other processes run."""
SGD = {"optimizer": "sgd", "learning_rate": 0.5}
NODES = 3


def wait(what: Callable[[], object], seconds: float = START, told: Callable[[], str] = str) -> float:
    """Wait until something is so; return the seconds that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() < began + seconds, told()
        time.sleep(0.05)
    return time.monotonic() - began


class Federation:
    """The commands of one server and its devices, the second of which reaches the server through a forwarder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = small_dataset(folder / "small", n_users=30)
        self.devices = partition(self.dataset, folder / "devices", NODES)
        answer_for_few(self.devices)
        self.server = Server.local(folder / "server")
        self.way = Forwarder(self.server.port)
        self.commands: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def control(self) -> Control:
        """What asks the server, by the authority that there is now."""
        return Control(self.server)

    def launch(self, name: str, *arguments: object) -> "subprocess.Popen[bytes]":
        """Start `tessera federate ...`, its output in a file."""
        with self.log(name).open("ab") as output:
            self.commands[name] = subprocess.Popen(
                [str(TESSERA), "federate", *map(str, arguments)],
                cwd=self.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        return self.commands[name]

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str) -> str:
        return self.log(name).read_text(errors="replace") if self.log(name).exists() else ""

    def start_server(self) -> None:
        before = self.said("server").count("Uvicorn running")
        where = ["--host", self.server.host, "--port", self.server.port, "--control-port", self.server.control_port]
        self.launch("server", "server", "--dir", self.server.folder, *where)
        wait(lambda: self.said("server").count("Uvicorn running") > before, told=lambda: self.said("server"))

    def join(self, node: int) -> None:
        """Have a device join, and wait until it has."""
        name, where = f"device-{node}", f"localhost:{self.way.port if node == 1 else self.server.port}"
        before, files = self.joins(node), ["--data-dir", self.devices[node], "--ca", self.folder / "ca.crt"]
        self.launch(name, "join", "--server", where, *files)
        wait(lambda: self.joins(node) > before, told=lambda: self.said(name))

    def joins(self, node: int) -> int:
        """How often the server has taken a device in."""
        return self.said(f"device-{node}").count("SuperNode ID")

    def online(self, node: int) -> bool:
        """Whether the server takes a device to be online."""
        return self.control.devices()[node].state == "online"

    def number(self, node: int) -> str:
        """The number by which the server names a device."""
        return self.control.devices()[node].number

    def submit(self, name: str, rounds: int, *more: object, **federation: float) -> "subprocess.Popen[bytes]":
        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(run_settings(name, rounds, **federation)))
        where = ["--dir", self.server.folder, "--catalogue", self.dataset, "--runs", self.folder / "runs"]
        return self.launch(name, "submit", config, *where, *more)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def rounds(self, name: str) -> list[dict[str, Any]]:
        return [line for line in read_metrics(self.run(name)) if line["kind"] == "round"]

    def nodes(self, name: str) -> list[int]:
        """How many devices took part in each round of a run so far."""
        return [line["nodes"] for line in self.rounds(name)]

    def reaches(self, name: str, what: Callable[[list[int]], bool]) -> float:
        """Wait until the devices in a run's rounds are so; return the seconds that took."""

        def there() -> bool:
            ended = self.commands[name].poll() is not None
            found = what(self.nodes(name))
            assert found or not ended, self.said(name)
            return found

        return wait(there, told=lambda: self.said(name))

    def finishes(self, name: str) -> None:
        """Wait until a run is at its end."""
        assert self.commands[name].wait(START) == 0, self.said(name)

    def warned(self, name: str) -> str:
        """What the run's ServerApp said."""
        return (self.run(name) / "federation" / "logs" / "serverapp.log").read_text()

    def node(self, node: int) -> psutil.Process:
        """What keeps a device connected."""
        return node_of(self.devices[node])

    def held(self, node: int) -> AbstractContextManager[None]:
        """Within it, a device keeps its connection and takes a message, but gets no further with it."""
        return held(self.devices[node])

    def holds_up(self, name: str, node: int) -> None:
        """Wait until a round of a run waits for a device alone, which has had the time to take its message."""

        def waits() -> bool:
            now = len(self.rounds(name)) + 1
            others = [self.said(f"device-{other}") for other in range(NODES) if other != node]
            return all(re.findall(r"round (\d+): train, ", said)[-1:] == [str(now)] for said in others)

        wait(waits, told=lambda: self.said(name))
        time.sleep(1.0)

    def kill(self, folder: Path, *names: str) -> None:
        """End all processes of a folder at once and without a word, as when the power fails."""
        for pid in left_behind(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in names:
            self.commands[name].kill()
            self.commands[name].wait()
        wait(lambda: not left_behind(folder))

    def close(self) -> None:
        """End all of it, as its operators would."""
        for process in reversed(self.commands.values()):
            process.terminate()
            process.wait(60)


def run_settings(name: str, rounds: int, **federation: float) -> dict[str, Any]:
    """Settings under which no second message a round, and no rounding by Adam, hides what happens."""
    changes = {
        "evaluation": {"every": 1000, "baselines": False},
        "server": SGD,
        "federation": {"nodes": NODES, **federation},
    }
    return small_settings(name=name, rounds=rounds, **changes).model_dump(mode="json")


def serverapps(folder: Path) -> list[int]:
    """Ids of the processes in which a server's runs are."""
    found = []
    for pid in left_behind(folder):
        with suppress(OSError):  # ended meanwhile
            told = [Path(f"/proc/{pid}/{where}").read_text() for where in ("comm", "cmdline")]
            found += [pid] if "flwr-serverapp" in "".join(told) else []
    return found
