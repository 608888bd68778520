"""A device's own node: it does what Flower's SuperNode does, runs nothing that a server sends, and outlives its worker."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import pytest
import torch
from flwr.cli.build import build_fab_from_disk
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.flower_internals.control import ControlClient
from tessera.common.utils.atomic_files import read_tensors
from tessera.common.utils.pauses import GROWTH
from tessera.deploy.environment import NodeKind
from tessera.deploy.executors.grpc import execute
from tessera.deploy.federation.node import JITTER, LAST_LOOK, waits
from tessera.deploy.federation.processes import Process, stop
from tessera.deploy.federation.supernode import public_key, start_supernode
from tessera.deploy.federation.worker import receive_frames, send_frames
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition
from tests.deploy.test_grpc import Running, left_behind, linux, none_left
from tests.deploy.test_grpc import running as running
from tests.support.catalogues import small_settings
from tests.support.commands import wait

pytestmark = pytest.mark.integration
HOSTILE = """
from pathlib import Path
Path({marker!r}).write_text("code of the server's ran on the device")
from flwr.clientapp import ClientApp
app = ClientApp()
"""
ASKING = """
import json, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    content = RecordDict({{"task": ConfigRecord({{"protocol": 0}})}})
    sent = set(grid.push_messages([Message(content, node, "query") for node in grid.get_node_ids()]))
    said = []
    while len(said) < len(sent):
        time.sleep(0.1)
        for reply in grid.pull_messages(sent):
            said.append(reply.error.reason if reply.has_error() else str(reply.content))
    with open({answers!r}, "w") as file:
        json.dump(said, file)
"""
PYPROJECT = """
[project]
name = "other"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "asking:app"
clientapp = "hostile:app"
[tool.flwr.app.config]
"""
WORKERS = """
import os, signal, threading, time, psutil
from flwr.app import ConfigRecord, Context, Message, RecordDict
from tessera.common.flower_internals.fleet import KnownRun, name_message, pack, unpack, write_context
from tessera.common.flower_internals.grid import speak_as
from tessera.deploy.federation import worker
worker.IDLE = 3.0
speak_as(1, 1)
state = RecordDict({"kept": ConfigRecord({"count": 7})})
run = KnownRun(5, write_context(Context(1, 2, {"data-dir": "here"}, state, {"rounds": 3}, 5)))
workers = worker.Workers()

def ask():
    message = Message(RecordDict({"task": ConfigRecord({"protocol": 0})}), 2, "query")
    name_message(message, message.object_id)
    answer = workers.answer(run, pack(message))
    assert answer.run == run, "an app that leaves its state alone finds it as it was"
    return unpack(answer.reply)

def forked():
    return [process for warm in psutil.Process().children() for process in warm.children()]
"""


@contextmanager
def joined(running: Running, data_dir: Path, kind: NodeKind = NodeKind.tessera) -> Iterator[Process]:
    """Within it, a device is online."""
    running.control.register(public_key(data_dir))
    address, ca = f"localhost:{running.server.port}", running.server.certificates.ca
    node = start_supernode("node", data_dir, address, ca, data_dir / "home", data_dir / "node.log", kind)
    try:
        assert wait(lambda: "SuperNode ID" in node.tail(1000)), node.tail()
        yield node
    finally:
        stop([node])


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def online(running: Running) -> int:
    return sum(device.state == "online" for device in running.control.devices())


@pytest.mark.slow
def test_a_run_on_either_kind_of_node_learns_the_same(shop: Path, tmp_path: Path) -> None:
    learnt = []
    for kind in NodeKind:
        folder = tmp_path / kind.value
        settings = small_settings(rounds=1, federation={"nodes": 1}, evaluation={"every": 1, "baselines": False})
        job = Job(settings, shop, partition(shop, folder / "devices", 1), folder / "run", node=kind)
        execute(job, lambda line: None)
        private = sorted(job.devices[0].glob("private/*/block-*/*.safetensors"))
        learnt.append([read_tensors(path)[0] for path in (*private, *sorted(job.run_dir.glob("checkpoints/*")))])
    assert [*map(len, learnt)] == [2, 2]
    for ours, flowers in zip(*learnt, strict=True):
        assert ours.keys() == flowers.keys()
        for name, value in ours.items():
            torch.testing.assert_close(value, flowers[name], rtol=1e-6, atol=1e-7)


@linux
@pytest.mark.parametrize("kind", NodeKind)
def test_code_that_a_server_ships_is_not_run(running: Running, tmp_path: Path, kind: NodeKind) -> None:
    """Flower's SuperNode would run it, which shows that this server does ship it."""
    marker, answers, bundle = tmp_path / "marker", tmp_path / "answers.json", tmp_path / "bundle"
    for name, text in (
        ("hostile.py", HOSTILE.format(marker=str(marker))),
        ("asking.py", ASKING.format(answers=str(answers))),
        ("pyproject.toml", PYPROJECT),
    ):
        bundle.mkdir(exist_ok=True)
        (bundle / name).write_text(text)
    content = build_fab_from_disk(bundle)
    (tmp_path / "device").mkdir()
    with joined(running, tmp_path / "device", kind):
        address, ca = f"127.0.0.1:{running.server.control_port}", running.server.certificates.ca.read_bytes()
        ControlClient(address, ca).start_run(content)
        assert wait(answers.exists)
        assert wait(lambda: answers.read_text() != "")
        (answer,) = json.loads(answers.read_text())
    assert marker.exists() == (kind is NodeKind.flower)
    assert ("speaks protocol 0" in answer) == (kind is NodeKind.tessera), answer


@linux
def test_a_node_signs_off_within_three_seconds_and_leaves_nothing_when_it_is_killed(
    running: Running, tmp_path: Path
) -> None:
    before = online(running)
    with joined(running, tmp_path) as node:
        assert wait(lambda: len(left_behind(tmp_path)) >= 2), "the node, and the process that forks its workers"
        assert online(running) == before + 1
        node.popen.terminate()
        assert node.popen.wait(3.0) == 0
        assert online(running) == before
    assert none_left(tmp_path)
    with joined(running, tmp_path) as node:
        node.popen.kill()
        node.popen.wait()
        assert none_left(tmp_path)


@linux
def test_a_worker_that_dies_costs_its_message_alone() -> None:
    python(
        WORKERS
        + """
assert ask().has_content()
(first,) = forked()
assert ask().has_content()
assert forked() == [first], "one worker answers message after message"
first.suspend()
threading.Timer(0.5, first.kill).start()
lost = ask()
assert lost.has_error() and "ended without an answer" in lost.error.reason, lost
assert ask().has_content()
(second,) = forked()
second.kill()  # between two messages
second.wait()
assert ask().has_content()
workers.close()
assert not psutil.Process().children(recursive=True)
"""
    )


@linux
def test_a_worker_without_work_gives_its_memory_back() -> None:
    python(
        WORKERS
        + """
assert ask().has_content()
(first,) = forked()
first.wait(20)
assert ask().has_content()
assert forked() != [first]
workers.close()
"""
    )


@linux
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_users_process_is_given_no_worker() -> None:
    python(
        WORKERS
        + """
import socket
assert ask().has_content()
child = os.fork()
if not child:
    os.setuid(65534)
    knocking = socket.socket(socket.AF_UNIX)
    knocking.connect(chr(0) + workers._name)
    os._exit(len(knocking.recv(1)))
assert os.waitpid(child, 0)[1] == 0
assert len(forked()) == 1 and ask().has_content()
workers.close()
"""
    )


def test_where_forking_is_not_safe_a_worker_is_started_and_kept() -> None:
    python(
        WORKERS.replace("workers = worker.Workers()", "worker.FORKS = False\nworkers = worker.Workers()")
        + """
assert ask().has_content()
(first,) = psutil.Process().children()
assert ask().has_content()
assert psutil.Process().children() == [first]
first.kill()
first.wait()
assert ask().has_content()
workers.close()
assert not psutil.Process().children()
"""
    )


@given(st.lists(st.binary(max_size=2000), max_size=8))
def test_frames_arrive_as_they_were_sent(frames: list[bytes]) -> None:
    one, other = Pipe()
    with one, other:
        send_frames(one, frames)
        assert receive_frames(other) == frames


def test_a_message_waits_for_a_quarter_of_the_time_that_nothing_came() -> None:
    passed, wait = 0.0, waits()
    for _ in range(100):
        pause = next(wait)
        assert pause <= min((1 + JITTER) * (0.1 + (GROWTH - 1) / (1 - JITTER) * passed), (1 + JITTER) * LAST_LOOK)
        passed += pause
    assert passed > 100
