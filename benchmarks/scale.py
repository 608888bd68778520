"""python -m tessera.benchmarks.scale --data DATA [--sizes 1000 5000 22363 100000] [--nodes auto] [--runs runs/scale]

Measures the seconds and the memory of a round of all users on Ray, by the number of users.

The settings are benchmarks/amazon-beauty-2014/scale.yaml. 22363 users are Amazon Beauty's (DATA/amazon-beauty-2014, or
TESSERA_DATA); other numbers are generated with its 12,101 items, its lengths and its skew. Training is the second round of
three; evaluation is what the third takes longer. Memory is the largest resident set of each process, with what it shares with
others. Linux only. Ends with one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tessera.benchmarks.synthetic_users import BEAUTY, write_beauty, write_synthetic_users
from tessera.common.errors import DataError
from tessera.common.metrics.records import EvaluationRecord, read_records, read_rounds
from tessera.deploy.provisioning.datasets import VARIABLE

CONFIG = Path(__file__).parent / BEAUTY / "scale.yaml"
TESSERA = Path(sys.executable).with_name("tessera")
SIZES = (1_000, 5_000, 22_363, 100_000)
BEAUTYS = 22_363
WORKER = "ray::ClientAppActor"
COLUMNS = {
    "users": "people",
    "train_seconds": "training s",
    "train_users_per_second": "people/s",
    "evaluate_seconds": "evaluation s",
    "driver_mb": "driver MB",
    "workers_mb": "workers MB",
    "largest_worker_mb": "largest MB",
    "state_mb": "state MB",
}


def main() -> None:
    """Measure each size, print the table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(VARIABLE, ".")))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--nodes", default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/scale"))
    arguments = parser.parse_args()
    rows = []
    print("".join(f"{title:>14}" for title in COLUMNS.values()))
    for n_users in arguments.sizes:
        rows.append(measure(dataset(n_users, arguments.data, arguments.runs), n_users, arguments.nodes, arguments.runs))
        print("".join(f"{rows[-1][name]:>14}" for name in COLUMNS), flush=True)
    print(json.dumps({"nodes": arguments.nodes, "cpus": os.cpu_count(), "sizes": rows}))


def dataset(n_users: int, data: Path, runs: Path) -> Path:
    """The dataset of so many people, made below `runs` where it is not there yet."""
    folder = runs / "datasets" / (BEAUTY if n_users == BEAUTYS else f"crowd-{n_users}")
    if not folder.exists():
        if n_users == BEAUTYS:
            write_beauty(data / BEAUTY, folder)
        else:
            write_synthetic_users(n_users, folder)
    return folder


def measure(folder: Path, n_users: int, nodes: str, runs: Path) -> dict[str, Any]:
    """Run the config over a dataset. Raises `DataError` when the run fails."""
    name = f"scale-{n_users}"
    command: list[str | Path] = [TESSERA, "train", CONFIG, "--executor", "ray", "--nodes", nodes, "--data", folder]
    command += ["--runs", runs, "--overwrite", "--set", f"name={name}", "--set", f"data.folder={folder.name}"]
    with (runs / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        peaks = watch(process)
    if process.returncode:
        raise DataError(f"the run of {n_users} people failed; {runs / name}.log says why")
    _, second, _ = read_rounds(runs / name)
    evaluated = next(line for line in read_records(runs / name) if isinstance(line, EvaluationRecord))
    workers = [peak for pid, peak in peaks.items() if pid != process.pid]
    state = sum(file.stat().st_size for file in (runs / name).glob("devices/*/private/**/*.safetensors"))
    return {
        "users": n_users,
        "train_seconds": round(second.seconds, 1),
        "train_users_per_second": round(n_users / second.seconds),
        "evaluate_seconds": round(evaluated.seconds, 1),
        "driver_mb": peaks[process.pid] // 1000,
        "workers_mb": sum(workers) // 1000,
        "largest_worker_mb": max(workers) // 1000,
        "n_workers": len(workers),
        "state_mb": state // 10**6,
        "bytes_down_per_user": round(second.bytes_down_per_user),
        "bytes_up_per_user": round(second.bytes_up_per_user),
    }


def watch(process: subprocess.Popen[bytes]) -> dict[int, int]:
    """Wait for a run to end; return the peak of its resident memory, and of its workers', by process in kB."""
    peaks: dict[int, int] = {}
    while process.poll() is None:
        for pid in [process.pid, *workers_of(process.pid)]:
            peaks[pid] = max(peaks.get(pid, 0), peak_of(pid))
        time.sleep(0.2)
    return peaks


def workers_of(pid: int) -> list[int]:
    """The Ray workers among the descendants of a process."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    found, below = [], list(children.get(pid, ()))
    while below:
        child = below.pop()
        below += children.get(child, ())
        if _read(child, "cmdline").startswith(WORKER):
            found.append(child)
    return found


def peak_of(pid: int) -> int:
    """The largest resident set a process ever had, in kB; 0 when it is gone."""
    lines = [line for line in _read(pid, "status").splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) if lines else 0


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
