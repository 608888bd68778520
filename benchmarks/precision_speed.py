"""python -m tessera.benchmarks.precision_speed [--parent CHECKOUT] [--data FOLDER] [--times 5]

Measures a cohort's round and its evaluation in float32 and in bfloat16, beside those of another checkout, one thread each.

`scale` is 512 people of benchmarks/amazon-beauty-2014/scale.yaml's settings, 12,101 items, seven views of 64 dimensions; `next`
256 people with long histories and 3,700 items who are asked for eight next events each; `ku` the 204 people of KU in
benchmarks/cohort_speed.py (a generated set of that size without --data or TESSERA_DATA). All kinds run in processes of their
own and take turns, so that what else the machine does slows all alike. Seconds are the processor's, medians of --times. Beside
them is what share of the processor's own time for the products that is. Ends with one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.benchmarks.cohort_speed import LOCAL, first_broadcast
from tessera.client import cohort, evaluation, recommendation
from tessera.client.histories import Histories, histories
from tessera.common.config.settings import EvaluationSettings, LocalSettings
from tessera.common.data.interactions import Split
from tessera.common.data.targets import Targets

ROOT = Path(__file__).parents[1]
CASES: dict[str, dict[str, Any]] = {
    "scale": {"backbone": "history", "loss": "softmax", "history_mask": 0.5, "learning_rate": 0.001},
    "next": {"backbone": "history", "loss": "next", "recency": 1.0, "history_mask": 0.0},
    "ku": LOCAL.model_dump(exclude_unset=True),
}
SIZES = {"scale": (512, 12_101, 1), "next": (256, 3_700, 8)}
"""People, items, and how many times as long histories are as Beauty's."""
N_VIEWS, DIM = 7, 64
PRECISIONS = ("float32", "bfloat16")


def main() -> None:
    """Measure all kinds in turn, print a table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=Path, help="a checkout of another commit")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.data)
    else:
        rows = [row for case in arguments.cases for row in compare(case, arguments)]
        print(json.dumps(rows))


def compare(case: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The seconds of each kind of round and evaluation, and their ratios to those of the other checkout."""
    kinds = {name: start(ROOT, f"{case}/{name}", arguments.data) for name in PRECISIONS}
    if arguments.parent:
        kinds["parent"] = start(arguments.parent, case, arguments.data)
    for what in ("train", "evaluate"):
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(arguments.times + 1):
            for name, process in kinds.items():
                seconds[name].append(ask(process, what))
        medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first one warms up
        row = {"case": case, "what": what, **{name: float(f"{value:.3g}") for name, value in medians.items()}}
        if arguments.parent:
            row |= {f"{name}/parent": round(medians[name] / medians["parent"], 3) for name in PRECISIONS}
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        yield row
    for process in kinds.values():
        process.communicate("", timeout=60)


def start(checkout: Path, worker: str, data: Path | None) -> subprocess.Popen[str]:
    """A process with one thread that computes with the code of a checkout when it is asked to."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", worker]
    command += ["--data", str(data)] if data else []
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process: subprocess.Popen[str], what: str) -> float:
    """Let a worker compute once; return the processor's seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{what}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def work(worker: str, data: Path | None) -> None:
    """Do what each line asks for, and say how long it took."""
    torch.set_num_threads(1)
    case, _, precision = worker.partition("/")
    tasks = prepared(case, precision, data)
    for line in sys.stdin:
        started = time.process_time()
        tasks[line.strip()]()
        print(time.process_time() - started, flush=True)


def prepared(case: str, precision: str, data: Path | None) -> dict[str, Callable[[], object]]:
    """A cohort's round, and its evaluation in parts of a size that fits the checkout."""
    local = LocalSettings.model_validate(CASES[case] | ({"precision": precision} if precision else {}))
    split, sent = inputs(case, data)
    people, state = histories(split), cohort.start_state(split.users, local, sent["views"], seed=0)
    asked = EvaluationSettings()

    size = getattr(recommendation, "EVALUATED", len(split.users))  # an earlier commit evaluates a block at once

    def evaluate() -> None:
        for start in range(0, len(split.users), size):
            rows = np.arange(start, min(start + size, len(split.users)))
            own = state.take(torch.from_numpy(rows)).parameters

            def scorer(users: Histories, own: dict[str, torch.Tensor] = own) -> torch.Tensor:
                return cohort.scores(own, sent, users, local)[0]

            evaluation.evaluate(scorer, split.take(rows), asked, None)

    return {"train": lambda: cohort.train(state, sent, people, local, 0, 1), "evaluate": evaluate}


def inputs(case: str, data: Path | None) -> tuple[Split, dict[str, torch.Tensor]]:
    """People, and what the server sends them."""
    if case == "ku":
        with tempfile.TemporaryDirectory() as cache:
            _, split, sent = first_broadcast(data, Path(cache))
        return split, sent
    n_users, n_items, times = SIZES[case]
    rng = np.random.default_rng(0)
    lengths = np.minimum(5 * rng.random(n_users) ** (-1 / 2.11), 204).astype(int) * times
    rows = [rng.choice(n_items, min(length, n_items // 3), replace=False) for length in lengths]
    offsets = np.cumsum([0, *(len(row) - 2 for row in rows)])
    validation, test = (Targets.single([row[place] for row in rows]) for place in (-2, -1))
    items = np.concatenate([row[:-2] for row in rows])
    draws = torch.Generator().manual_seed(0)
    sent = {"views": 0.3 * torch.randn(N_VIEWS, n_items, DIM, generator=draws)}
    sent["history"] = 0.3 * torch.randn(n_items, DIM, generator=draws)
    return Split(tuple(map(str, range(n_users))), offsets, items, validation, test, n_items), sent


if __name__ == "__main__":
    main()
