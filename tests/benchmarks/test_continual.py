"""The benchmark of runs that continue, as it is called with --quick."""

import json
import subprocess
import sys


def test_it_ends_with_one_line_of_json() -> None:
    command = [sys.executable, "-m", "tessera.benchmarks.continual", "--quick"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told = json.loads(said.splitlines()[-1])
    assert told["rounds"] == {"scratch": 10, "continued": 2}
    assert [(row["items"], row["people"]) for row in told["steps"]] == [(75, 22), (100, 30)]
    assert all(0 < row[model] < 100 for row in told["steps"] for model in ("scratch", "continued", "still"))
