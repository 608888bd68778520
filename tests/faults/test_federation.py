"""A federation of real processes, as its operators run it, of which parts are killed, cut off and stopped.

One server and two devices live through all of it, one fault after the other, and a run for each.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tessera.common.utils.atomic_files import read_tensors
from tessera.deploy.executors import inline
from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.superlink import Control, Server
from tessera.deploy.federation.supernode import public_key
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition
from tests.deploy.test_grpc import left_behind
from tests.faults.forwarder import Forwarder
from tests.support.catalogues import small_dataset, small_settings
from tests.support.metrics import read_metrics

TESSERA = Path(sys.executable).parent / "tessera"
START = 150.0
"""Seconds that something may take to begin, where many other processes run."""
CUT = 30.0
DEADLINE = 30.0
SGD = {"optimizer": "sgd", "learning_rate": 0.5}
pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found through /proc"),
]


def wait(what: Callable[[], object], seconds: float = START, told: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


class Federation:
    """The commands of one server and two devices, the second of which reaches the server through a forwarder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dataset = small_dataset(folder / "small")
        self.devices = partition(self.dataset, folder / "devices", 2)
        self.server = Server.local(folder / "server")
        self.way = Forwarder(self.server.port)
        self.commands: dict[str, subprocess.Popen[bytes]] = {}

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
        return self.log(name).read_text(errors="replace")

    def start_server(self) -> None:
        before = self.said("server").count("Uvicorn running") if self.log("server").exists() else 0
        where = ["--host", self.server.host, "--port", self.server.port, "--control-port", self.server.control_port]
        self.launch("server", "server", "--dir", self.server.folder, *where)
        wait(lambda: self.said("server").count("Uvicorn running") > before, told=lambda: self.said("server"))

    def join(self, node: int) -> None:
        """Have a device join, and wait until it has."""
        self.try_to_join(node)
        before = self.said(f"device-{node}").count("SuperNode ID")
        wait(
            lambda: self.said(f"device-{node}").count("SuperNode ID") > before, told=lambda: self.said(f"device-{node}")
        )

    def try_to_join(self, node: int) -> "subprocess.Popen[bytes]":
        where = f"localhost:{self.way.port if node else self.server.port}"
        files = ["--data-dir", self.devices[node], "--ca", self.folder / "ca.crt"]
        return self.launch(f"device-{node}", "join", "--server", where, *files)

    def submit(self, name: str, rounds: int, *more: object, **federation: float) -> "subprocess.Popen[bytes]":
        config = self.folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(run_settings(name, rounds, **federation)))
        where = ["--dir", self.server.folder, "--catalogue", self.dataset, "--runs", self.folder / "runs"]
        return self.launch(name, "submit", config, *where, *more)

    def run(self, name: str) -> Path:
        return self.folder / "runs" / name

    def rounds(self, name: str) -> list[dict[str, Any]]:
        return [line for line in read_metrics(self.run(name)) if line["kind"] == "round"]

    def reaches(self, name: str, round: int) -> None:
        """Wait until a round of a run is reported."""
        submitted = self.commands[name]

        def there() -> bool:
            assert submitted.poll() is None, self.said(name)
            return len(self.rounds(name)) >= round

        wait(there, told=lambda: self.said(name))

    def finishes(self, name: str) -> None:
        """Wait until a run is at its end."""
        assert self.commands[name].wait(START) == 0, self.said(name)

    def warned(self, name: str) -> str:
        """What the run's ServerApp said."""
        return (self.run(name) / "federation" / "logs" / "serverapp.log").read_text()

    def kill(self, folder: Path, *names: str) -> None:
        """End all processes of a folder at once and without a word, as when the power fails."""
        for pid in left_behind(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in names:
            self.commands[name].kill()
            self.commands[name].wait()
        wait(lambda: not left_behind(folder))


def run_settings(name: str, rounds: int, **federation: float) -> dict[str, Any]:
    """Settings under which no second message a round, and no rounding by Adam, hides what happens."""
    changes = {
        "evaluation": {"every": 100, "baselines": False},
        "server": SGD,
        "federation": {"nodes": 2, **federation},
    }
    return small_settings(name=name, rounds=rounds, **changes).model_dump(mode="json")


def processes(folder: Path, command: str) -> list[int]:
    """Ids of a server's or device's processes with `command` in their command line."""
    found = []
    for pid in left_behind(folder):
        with suppress(OSError):  # ended meanwhile
            found += [pid] if command in Path(f"/proc/{pid}/cmdline").read_text() else []
    return found


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"))
    yield made
    for process in reversed(made.commands.values()):
        process.terminate()
        process.wait(60)


def test_an_expired_certificate_is_renewed_and_devices_keep_theirs(federation: Federation) -> None:
    """The server does not start with one and says what mends it. The devices had been given ca.crt before."""
    files = make_certificates(federation.server.folder, [], 0)
    (federation.folder / "ca.crt").write_bytes(files.ca.read_bytes())
    time.sleep(1.1)  # certificates end at whole seconds
    refused = federation.launch("server", "server", "--dir", federation.server.folder)
    assert refused.wait(START) == 1
    assert "server.pem expired on" in federation.said("server")
    assert "certificates" in federation.said("server")
    assert federation.launch("renew", "certificates", federation.server.folder, "--renew").wait(START) == 0
    federation.start_server()
    for node, folder in enumerate(federation.devices):
        Control(federation.server).register(public_key(folder))
        federation.join(node)


def test_a_device_cut_off_for_30_seconds_comes_back_by_itself(federation: Federation) -> None:
    """Its connections break and cannot be made again for half a minute. Flower needs about a minute to have it back: a round
    that it was cut off in may wait for it or close without it, and those in between go on without it."""
    federation.submit("cut", 3)
    federation.reaches("cut", 1)
    federation.way.cut()
    time.sleep(CUT)
    federation.way.mend()
    federation.finishes("cut")
    wait(lambda: "Connection successful" in federation.said("device-1"))
    federation.submit("cut", 4, "--resume")
    federation.finishes("cut")
    nodes = [line["nodes"] for line in federation.rounds("cut")]
    assert (len(nodes), nodes[0], nodes[-1]) == (4, 2, 2), federation.warned("cut")


def test_a_device_slower_than_the_deadline_is_left_out_of_its_round_and_takes_part_in_a_later_one(
    federation: Federation,
) -> None:
    """The round closes at the deadline, with the others' replies; the server names the node; its late reply is dropped."""
    federation.submit("slow", 4, timeout=DEADLINE)
    federation.reaches("slow", 1)
    device = federation.devices[1]
    stopped = set(left_behind(device)) - set(processes(device, "flower-supernode"))  # that one keeps up its connection
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    federation.reaches("slow", 2)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    federation.finishes("slow")
    assert [line["nodes"] for line in federation.rounds("slow")][:2] == [2, 1]
    assert federation.rounds("slow")[-1]["nodes"] == 2
    assert f"did not answer in {DEADLINE:g} s" in federation.warned("slow")


def test_a_device_killed_in_a_round_is_named_and_comes_back_after_a_minute(federation: Federation) -> None:
    """Its round goes on without it as soon as Flower takes it to be gone; the other's reply is kept. Started again at once, it
    tries until the server takes it back. What it had learnt before is there, and it takes part in the next round."""
    device, name = federation.devices[1], "killed"
    federation.submit(name, 3)
    federation.reaches(name, 1)
    wait(lambda: processes(device, "flwr-clientapp"))
    federation.kill(device, "device-1")
    (kept,) = device.glob(f"private/{name}-*/block-0000/round-000001.safetensors")
    learnt = kept.read_bytes()
    federation.join(1)
    federation.finishes(name)
    assert [line["nodes"] for line in federation.rounds(name)][:2] == [2, 1]
    gone = re.search(r"SuperNode ID: (\d+)", federation.said("device-1"))
    assert gone
    assert f"node {gone[1]} failed: " in federation.warned(name)
    assert kept.read_bytes() == learnt
    federation.submit(name, 4, "--resume")
    federation.finishes(name)
    assert [line["nodes"] for line in federation.rounds(name)][3:] == [2]


def test_a_run_whose_serverapp_is_killed_and_then_its_whole_server_is_resumed_each_time(federation: Federation) -> None:
    """`submit` says that the run failed; with --resume it goes on. Then SuperLink, ServerApp and `submit` die at once: started
    from the same folder, the server knows its devices' keys; they come back by themselves; --resume ends with what an
    undisturbed run has learnt."""
    name, folder = "server-killed", federation.server.folder
    federation.submit(name, 4)
    federation.reaches(name, 1)
    for pid in processes(folder, "flwr-serverapp"):
        os.kill(pid, signal.SIGKILL)
    assert federation.commands[name].wait(START) == 1
    assert "the run's ServerApp ended without a word: " in federation.said(name)
    assert "go on with --resume" in federation.said(name)

    federation.submit(name, 4, "--resume")
    federation.reaches(name, 2)
    time.sleep(1.0)  # into the next round
    federation.kill(folder, name, "server")
    assert len(federation.rounds(name)) in (2, 3)
    federation.start_server()
    federation.submit(name, 4, "--resume")
    federation.finishes(name)
    assert [line["nodes"] for line in federation.rounds(name)] == [2, 2, 2, 2]
    assert all(process.poll() is None for name, process in federation.commands.items() if name.startswith("device"))

    undisturbed = run_settings(name, 4)
    devices = partition(federation.dataset, federation.folder / "undisturbed" / "devices", 2)
    job = Job(small_settings(**undisturbed), federation.dataset, devices, federation.folder / "undisturbed")
    inline.execute(job, lambda line: None)
    for mine, theirs in (
        (federation.run(name), job.run_dir),
        *zip(federation.devices, devices, strict=True),
    ):
        assert_learnt_the_same(mine, theirs)


def assert_learnt_the_same(mine: Path, theirs: Path) -> None:
    """The last checkpoint of a run, or the last private states of a device's run."""
    found = [
        sorted([*folder.glob("checkpoints/*"), *folder.glob("private/server-killed-*/block-0000/*")])[-1]
        for folder in (mine, theirs)
    ]
    (tensors, _), (wanted, _) = map(read_tensors, found)
    for name, value in wanted.items():
        torch.testing.assert_close(tensors[name], value, rtol=1e-5, atol=1e-5)
