"""Runs and devices killed with -9, at any change of any of their files: they go on as if nothing had happened."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.deploy.provisioning.partition import partition
from tests.support.catalogues import small_dataset

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.faults


def kills(program: str, *arguments: object) -> int:
    """Run one of the programs that kill; return how often they did."""
    command = [sys.executable, "-m", f"tests.faults.{program}", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize(
    ("before", "rounds", "least"),
    [pytest.param(0, 1, 43, id="from its beginning"), pytest.param(3, 5, 57, id="when old states are dropped")],
)
def test_a_run_killed_at_any_change_of_a_file_ends_as_the_undisturbed_one(
    before: int, rounds: int, least: int, tmp_path: Path
) -> None:
    """Whenever it is killed (before it has begun, in the item statistics or the spectral start, while a device trains or
    evaluates or writes its private state, between training and checkpoint, amid the checkpoint, after the last round), the
    run goes on with --resume, or begins where there was none. It loses at most the round in flight, leaves no half-written
    file, and ends with the same parameters, private states and metrics, bit for bit. Meanwhile devices can recommend.
    """
    small_dataset(tmp_path / "small")
    assert kills("killing", tmp_path, before, rounds) >= least


def test_a_device_killed_while_it_writes_has_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    """Asked again, it trains from the same state and returns the same gradients; the server cannot tell. Nothing is torn, of
    nobody's, and no half-written file stays."""
    people = partition(small_dataset(tmp_path / "small"), tmp_path / "devices", 1)[0]
    assert kills("killing_device", people) >= 11
