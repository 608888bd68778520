"""A run killed with -9, at any change of any of its files: it goes on, and ends as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import small_dataset

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("before", "rounds", "least"),
    [pytest.param(0, 1, 40, id="from its beginning"), pytest.param(3, 5, 60, id="when old states are dropped")],
)
def test_a_run_killed_at_any_change_of_a_file_ends_as_the_undisturbed_one(
    before: int, rounds: int, least: int, tmp_path: Path
) -> None:
    """Whenever it is killed (before it has begun, in the census or the spectral start, while a device trains or evaluates or
    writes its private state, between training and checkpoint, amid the checkpoint, after the last round), the run goes on
    with --resume, or begins where there was none. It loses at most the round in flight, leaves no half-written file, and ends
    with the same parameters, private states and metrics, bit for bit.
    """
    small_dataset(tmp_path / "small")
    command = [sys.executable, "-m", "tests.faults.killing", str(tmp_path), str(before), str(rounds)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) >= least, "the run was killed at fewer changes than it must make"
