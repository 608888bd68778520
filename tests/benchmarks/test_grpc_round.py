"""The benchmark of a round over gRPC runs as its first line says, and finds our node faster than Flower's SuperNode."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
