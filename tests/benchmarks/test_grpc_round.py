"""The benchmark of a round over gRPC runs as its first line says, and finds our node faster than Flower's SuperNode."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.benchmarks.grpc_round import cpu_seconds

ROOT = Path(__file__).parents[2]


def test_cpu_seconds_are_those_of_all_that_a_process_started_and_of_what_has_ended() -> None:
    work = "import time\nwhile time.process_time() < 0.3: pass\n"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {work!r}])\n{work}"
    parent = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])\n{work}print(flush=True)\ninput()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert 0.88 < cpu_seconds(process.pid) < 2  # three at work, each at least 0.3 s by its own clock
        process.communicate(b"\n")


@pytest.mark.integration
@pytest.mark.slow
def test_it_ends_with_its_figures_and_our_node_is_the_faster() -> None:
    command = [sys.executable, "-m", "benchmarks.grpc_round", "--rounds", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["rounds"] == 1
    assert found["ratios"]["ours train / flower train"] < 0.5
    assert found["ratios"]["ours train / flower empty"] < 0.5
    assert 0 < found["cpu_seconds_per_message"]["ours train"] < found["cpu_seconds_per_message"]["flower train"] / 5
