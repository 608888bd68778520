"""A disk that gets full: what cannot be written is named, all that was there stays whole, and with room the work goes on."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tessera.client.app import device_app
from tessera.common.errors import StorageError
from tessera.common.metrics.records import Record
from tessera.common.utils.atomic_files import digest
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.executors.run import make_job
from tessera.deploy.provisioning.partition import partition
from tessera.server.app import serve
from tests.faults.killing import outcome
from tests.support.catalogues import small_dataset, small_job, small_settings
from tests.support.metrics import read_metrics

TESSERA = Path(sys.executable).parent / "tessera"
ROUNDS = 4
pytestmark = pytest.mark.faults


def silent(line: Record) -> None:
    """Hear nothing."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk of its own can be mounted by root only")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no room on a disk; return the file to remove."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


def filling(disk: Path, after: int) -> Callable[[Record], None]:
    """A listener that fills the disk when round `after` is reported."""
    return lambda line: fill(disk) and None if line.kind == "round" and line.round == after else None


def test_the_servers_disk_gets_full(tmp_path: Path, disk: Path) -> None:
    """The command ends with one message: which file, why, what to do. With room, --resume ends as the undisturbed run does."""
    dataset = small_dataset(tmp_path / "data" / "small")
    settings = small_settings(rounds=120, evaluation={"every": 60}, data={"folder": "small", "kind": "converted"})
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    command = [str(TESSERA), "train", "small.yaml", "--data", "data", "--runs"]
    process = subprocess.Popen(
        [*command, "disk"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    while len(read_metrics(disk / "small")) < 5:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    ballast = fill(disk)
    output, trouble = process.communicate(timeout=60)
    assert process.returncode == 1
    said = trouble.strip().splitlines()[-1]
    assert said.startswith(f"error: {disk}/small/")
    assert "cannot be written: No space left on device; make room" in said
    assert "--resume" in said
    assert "Traceback" not in output + trouble
    ballast.unlink()
    done = subprocess.run(
        [*command, "disk", "--resume"], cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=120
    )
    assert done.returncode == 0, done.stderr
    inline.execute(make_job(settings, dataset, tmp_path / "whole", resume=False, overwrite=False), silent)
    assert outcome(disk / "small") == outcome(tmp_path / "whole")


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "400"}


def test_the_disk_of_a_simulation_gets_full_while_a_device_writes(tmp_path: Path, disk: Path) -> None:
    """It is the run's own disk: the run stops rather than go on without the device, and --resume ends as undisturbed."""
    small_dataset(tmp_path / "small")
    inline.execute(small_job(tmp_path, "whole", 2, rounds=ROUNDS), silent)
    job = small_job(tmp_path, "run", 2, rounds=ROUNDS)
    job = replace(job, devices=partition(job.catalogue, disk / "devices", 2))
    with pytest.raises(StorageError, match=rf"{disk}/devices/node-0/.* cannot be written: No space left on device"):
        inline.execute(job, filling(disk, after=2))
    (disk / "ballast").unlink()
    inline.execute(replace(job, resume=True), silent)
    (job.run_dir / "devices").rename(job.run_dir / "unused")
    (job.run_dir / "devices").symlink_to(disk / "devices")
    assert outcome(job.run_dir) == outcome(tmp_path / "whole")


def test_the_disk_of_a_device_gets_full(tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server names the node and hears no more than the kind of trouble; the others go on. The device's own log names the
    file. The state from before is whole, and with room the device takes part again as if it had not been asked."""
    dataset = small_dataset(tmp_path / "small")
    devices = partition(dataset, tmp_path / "devices", 2)
    full = partition(dataset, disk, 2)[1]
    grid = InlineGrid(device_app(), 2)
    for node, folder in ((1, devices[0]), (2, full)):
        grid.nodes[node]["data-dir"] = str(folder)
    kept: list[dict[str, str]] = []

    def listen(line: Record) -> None:
        kept.append({path.name: digest(path.read_bytes()) for path in full.glob("private/*/block-*/*")})
        if line.kind == "round" and line.round == 2:
            fill(disk)
        if line.kind == "round" and line.round == 3:
            (disk / "ballast").unlink()

    settings = small_settings(federation={"nodes": 2}, rounds=ROUNDS, evaluation={"every": 4})
    serve(grid, settings, dataset, tmp_path / "run", resume=False, report=listen)
    rounds = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "round"]
    assert [line["nodes"] for line in rounds] == [2, 2, 1, 2]
    assert "node 2 refused: StorageError on the device; its own log says more" in caplog.text
    assert f"{full}/" in caplog.text
    assert "cannot be written: No space left on device; make room" in caplog.text
    assert kept[4] == kept[3], "what was there before is whole, and nothing else is there"
    assert "round-000004.safetensors" in {path.name for path in full.glob("private/*/block-*/*")}
