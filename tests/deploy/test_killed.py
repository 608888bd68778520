"""What is killed with -9 leaves no process of Flower's behind, and no folder is used by two processes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tessera.common.datasets import convert_shop
from tessera.common.errors import RunError
from tessera.common.utils.folder_lock import clear, hold_folder
from tessera.deploy.federation.certificates import make_certificates, make_node_key
from tessera.deploy.federation.processes import end_leftovers, remains, start, stop
from tessera.deploy.federation.superlink import Control, Server
from tessera.deploy.provisioning.partition import partition
from tessera.deploy.provisioning.trial import answer_for_few
from tests.deploy.test_grpc import SETTINGS, left_behind, linux
from tests.support.commands import SECONDS, Start, commands, wait
from tests.support.metrics import read_metrics
from tests.support.nodes import held

pytestmark = pytest.mark.integration


@pytest.fixture
def start_command() -> Iterator[Start]:
    with commands() as start:
        yield start


@linux
@pytest.mark.slow
def test_a_killed_server_device_and_submit_leave_nothing_behind(
    shop: Path, tmp_path: Path, start_command: Start
) -> None:
    """Each folder is used by one process at a time. A run whose `submit` is killed goes on, and holds its folder."""
    server = Server.local(tmp_path / "server")
    (device,) = partition(shop, tmp_path, 1)
    answer_for_few([device])
    make_certificates(server.folder, [], 1)
    ports = ["--host", server.host, "--port", server.port, "--control-port", server.control_port]
    up = start_command(tmp_path / "server.log", "federate", "server", "--dir", server.folder, *ports)
    up.says("Uvicorn running")
    Control(server).register(make_node_key(device / "node.key"))
    join = ["federate", "join", "--server", f"localhost:{server.port}", "--data-dir", device]
    join += ["--ca", server.certificates.ca]
    joined = start_command(tmp_path / "join.log", *join)
    joined.says("SuperNode ID")
    again = start_command(tmp_path / "again.log", *join)
    again.says(f"{device} is in use by process {joined.popen.pid}")
    submitted_and_killed(server, device, shop, start_command)
    joined.kill()
    up.kill()
    assert wait(lambda: not left_behind(tmp_path)), left_behind(tmp_path)


def submitted_and_killed(server: Server, device: Path, shop: Path, start_command: Start) -> None:
    """Kill a `submit` when its run has begun: its folder is not taken from the run, which comes to its end.

    The device is held still meanwhile: the run would be over too soon.
    """
    tmp_path = server.folder.parent
    config, run = tmp_path / "config.yaml", tmp_path / "runs" / "small"
    config.write_text(yaml.safe_dump(SETTINGS | {"rounds": 2, "federation": {"nodes": 1}}))
    submit = ["federate", "submit", config, "--dir", server.folder, "--catalogue", shop, "--runs", run.parent]
    with held(device):
        first = start_command(tmp_path / "submit.log", *submit)
        assert wait(lambda: (run / "config.yaml").exists()), first.told()
        first.kill()
        second = start_command(tmp_path / "resume.log", *submit, "--resume")
        assert second.ends() == 1
    assert f"{run} is in use by process" in second.told()
    assert wait(lambda: json.loads((run / "status.json").read_text())["state"] == "completed")
    kinds = [line["kind"] for line in read_metrics(run)]
    assert kinds == ["item_statistics", "round", "evaluation", "round", "evaluation", "result"]


@linux
@pytest.mark.slow
def test_a_killed_run_over_grpc_leaves_nothing_behind_and_is_resumed(tmp_path: Path, start_command: Start) -> None:
    convert_shop(tmp_path / "shop", n_items=80, n_users=24)
    config, run = tmp_path / "config.yaml", tmp_path / "runs" / "small"
    config.write_text(yaml.safe_dump(SETTINGS | {"rounds": 2}))
    train = ["train", config, "--data", tmp_path, "--executor", "grpc", "--runs", run.parent]
    first = start_command(tmp_path / "train.log", *train)
    assert wait(lambda: any(line["kind"] == "round" for line in read_metrics(run))), first.told()
    first.kill()
    assert wait(lambda: not left_behind(tmp_path)), left_behind(tmp_path)
    second = start_command(tmp_path / "resume.log", *train, "--resume")
    assert second.ends() == 0, second.told()
    kinds = [line["kind"] for line in read_metrics(run)]
    assert kinds == ["item_statistics", "round", "evaluation", "round", "evaluation", "result"]


@linux
def test_what_does_not_heed_its_parents_end_is_ended_at_the_next_start(tmp_path: Path) -> None:
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(300)"
    )
    old = start("old", ["python", "-c", deaf], tmp_path / "home" / "node", tmp_path / "old.log")
    other = start("other", ["python", "-c", deaf], tmp_path / "home-of-another", tmp_path / "other.log")
    try:
        assert wait(lambda: "up" in old.tail() and "up" in other.tail())
        end_leftovers(tmp_path / "home")
        assert old.popen.wait(SECONDS) == -signal.SIGKILL
        assert remains(other)
    finally:
        stop([old, other], grace=0)


def test_a_folder_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with hold_folder(folder):
        (folder / "checkpoints").mkdir()
        (folder / "config.yaml").touch()
        with pytest.raises(RunError, match=f"{folder} is in use by process {os.getpid()}"), hold_folder(folder):
            pass
        clear(folder)  # as --overwrite does
        with pytest.raises(RunError, match="in use"), hold_folder(folder):
            pass
    assert not (folder / "config.yaml").exists()
    with hold_folder(folder):
        pass


def test_a_killed_process_lets_go_of_its_folder(tmp_path: Path) -> None:
    code = "import time; from pathlib import Path; from tessera.common.utils.folder_lock import hold_folder\n"
    code += f"with hold_folder(Path({str(tmp_path)!r})):\n"
    code += "    print('held', flush=True); time.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        holder.stdout.readline()
        with pytest.raises(RunError, match=f"process {holder.pid}"), hold_folder(tmp_path):
            pass
        holder.kill()
    with hold_folder(tmp_path):
        pass
