"""What a device's owner does may be killed at any moment: the device opens, others are as they were, and it is done anew."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.deploy.executors import inline
from tests.client.test_people import device, job
from tests.deploy.test_executors import silent


@pytest.mark.faults
def test_every_command_is_safe_to_kill(tmp_path: Path) -> None:
    inline.execute(job(tmp_path, rounds=1), silent)
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    program = [sys.executable, "-m", "tests.faults.killing_commands", device(tmp_path), key]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout.splitlines()[-1])
    assert min(kills.values()) >= 2, kills
    assert kills["encrypt"] > 10, kills
