"""The process that a server's SuperLink and ServerApps run below: whole runs are in test_grpc."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="ServerApps are forked on Linux alone")
HOST = [
    sys.executable,
    "-P",
    "-m",
    "tessera.deploy.federation.serverapps",
    "127.0.0.1:9",
    "ca.crt",
    sys.executable,
    "-c",
]
WARM = """
import json, sys, threading
from pathlib import Path
from tessera.common.flower_internals.runtime import import_server_app_runner
from tessera.deploy.federation.serverapps import import_what_starts_no_thread

import_server_app_runner()
import_what_starts_no_thread()
assert threading.active_count() == 1
names = {(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
assert names == {Path("/proc/self/comm").read_text().strip()}, names
assert "torch" in sys.modules
assert "polars" not in sys.modules
import tessera.server.app
"""


def test_what_is_forked_has_started_no_threads_of_libraries() -> None:
    """OpenBLAS has, but starts them anew in a fork; those of polars would be missing there."""
    subprocess.run([sys.executable, "-c", WARM], check=True)


@pytest.mark.parametrize(
    ("superlink", "code"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", 128 + signal.SIGKILL)]
)
def test_it_ends_as_the_superlink_does(superlink: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").touch()
    assert subprocess.run([*HOST, superlink], cwd=tmp_path, timeout=60).returncode == code


def test_told_to_end_it_has_the_superlink_end_first(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").touch()
    superlink = """
import signal, time
def leave(number, frame):
    print("signing off", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, leave)
print("up", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([*HOST, superlink], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.stdout.readline() == "signing off\n"
        assert process.wait(30) == 0
