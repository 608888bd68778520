"""Many simulated nodes: views that lie on disk once, a Ray cluster that is there, a share of a GPU."""

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import ray
import yaml
from flwr.app import Message
from ray.autoscaler._private.util import prepare_config, validate_config

from tessera.client.app import device_app
from tessera.client.recommend import Personal
from tessera.client.run_note import RunNote
from tessera.common.errors import RunError
from tessera.common.metrics.records import Record
from tessera.deploy.executors import inline
from tessera.deploy.executors import ray as simulate
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.executors.shared_tensors import SharedTensorGrid
from tessera.deploy.job import Job, Report
from tessera.server.app import serve
from tests.deploy.test_executors import SGD, assert_bitwise, assert_same_run, silent
from tests.support.catalogues import small_job, small_settings
from tests.support.metrics import read_metrics

pytestmark = pytest.mark.integration
CLUSTER = Path(simulate.__file__).parents[1] / "ray-cluster.yaml"


class Thin(InlineGrid):
    """The inline grid, which refuses messages that carry tensors."""

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        messages = list(messages)
        assert not any("tensors" in message.content for message in messages)
        return super().push_messages(messages)


def execute_shelved(job: Job, report: Report) -> None:
    """Run a job in this process as the Ray executor does: with shared tensors."""
    devices = job.devices[0].parent
    grid = SharedTensorGrid(Thin(device_app(devices), len(job.devices)), devices)
    serve(grid, job.settings, job.catalogue, job.run_dir, job.resume, report)


def held(job: Job) -> list[Path]:
    """The file of tensors that each node got last."""
    notes = [RunNote.read(next(device.glob("private/*/run.json"))) for device in job.devices]
    return [
        device / "views" / f"{note.last.tensors}.safetensors" for device, note in zip(job.devices, notes, strict=True)
    ]


def test_what_all_nodes_are_sent_lies_on_disk_once_and_changes_nothing(tmp_path: Path) -> None:
    plain, shelved = small_job(tmp_path, "plain", 3), small_job(tmp_path, "shelved", 3, rounds=2)
    inline.execute(plain, silent)
    execute_shelved(shelved, silent)
    for one, other in zip(read_metrics(plain.run_dir)[:3], read_metrics(shelved.run_dir), strict=False):
        assert one.get("bytes_down_per_node") == other.get("bytes_down_per_node")
    execute_shelved(small_job(tmp_path, "shelved", 3, resume=True), silent)
    assert_bitwise(tmp_path / "plain", tmp_path / "shelved")
    assert len({file.stat().st_ino for file in held(plain)}) == 3
    assert len({file.stat().st_ino for file in held(shelved)}) == 1

    shutil.rmtree(shelved.devices[0].parent / "views")  # a device's folder is whole without its neighbours'
    assert Personal.open(shelved.devices[0]).recommend("person-0", 5)[0]


def test_views_that_were_damaged_on_the_shelf_are_written_anew(tmp_path: Path) -> None:
    job = small_job(tmp_path, "damaged", 3, rounds=3)

    def damage(line: Record) -> None:
        if line.kind == "round" and line.round == 2:
            file = held(job)[1]
            file.write_bytes(file.read_bytes()[:-1] + b"?")  # in place, so for all who share it

    execute_shelved(job, damage)
    assert [line["nodes"] for line in read_metrics(job.run_dir) if line["kind"] == "round"] == [3, 3, 3]
    assert {file.stat().st_nlink for file in held(job)} == {4}  # three nodes and the shared folder


def test_where_ray_runs_and_what_a_worker_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    own = simulate.backend(small_settings(device="cpu"))
    assert own["init_args"]["address"] == "local"  # never what /tmp says of a Ray that died
    assert own["init_args"]["_node_ip_address"] == "127.0.0.1"
    assert own["client_resources"] == {"num_cpus": 1, "num_gpus": 0.0}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert simulate.backend(small_settings())["init_args"]["address"] == "10.0.0.1:6379"
    named = simulate.backend(small_settings(simulation={"address": "10.0.0.2:6379", "gpus": 0.25}))
    assert named["init_args"]["address"] == "10.0.0.2:6379"
    assert "_node_ip_address" not in named["init_args"]
    assert named["client_resources"] == {"num_cpus": 1, "num_gpus": 0.25}


@pytest.mark.parametrize(
    ("simulation", "reason"),
    [({"address": "127.0.0.1:1"}, "no Ray answers at 127.0.0.1:1"), ({"gpus": 0.5}, "sees no CUDA device")],
)
def test_what_would_wait_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulation: dict, reason: str
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RunError, match=reason):
        simulate.execute(small_job(tmp_path, simulation=simulation), silent)


def test_the_cluster_file_is_one_that_ray_takes() -> None:
    validate_config(prepare_config(yaml.safe_load(CLUSTER.read_text())))


@pytest.fixture
def cluster() -> Iterator[str]:
    """Address of a Ray of two machines, of one CPU each, as far as Ray can tell: two raylets on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Ray's sockets lie in it
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1"]
    command += ["--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    head = ["--head", f"--port={address.split(':')[1]}", "--include-dashboard=false", f"--temp-dir={folder}"]
    processes = []
    try:
        for rest in (head, [f"--address={address}"]):
            processes.append(subprocess.Popen([*command, *rest], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            wait_for(address, len(processes))
        yield address
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for(address: str, machines: int) -> None:
    """Wait until a cluster has so many machines."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if alive(address) == machines:
            return
        time.sleep(0.5)
    raise AssertionError(f"Ray at {address} did not come up")


def alive(address: str) -> int:
    """How many machines a cluster has, asked by a process of its own: this one may join a cluster only once it is whole."""
    program = f"import ray; ray.init({address!r}, log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return int(asked.stdout.split()[-1]) if asked.returncode == 0 else 0


@pytest.mark.slow
def test_a_cluster_that_is_there_is_used_and_left_running(tmp_path: Path, cluster: str) -> None:
    inline.execute(small_job(tmp_path, "inline", 4, server=SGD), silent)
    simulate.execute(small_job(tmp_path, "ray", 4, server=SGD, simulation={"address": cluster}), silent)
    assert_same_run(tmp_path / "inline", tmp_path / "ray", 1e-5)
    assert not ray.is_initialized()
    assert alive(cluster) == 2
