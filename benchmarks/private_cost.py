"""python -m tessera.benchmarks.private_cost --data DATA [--runs runs/private] [--times 1 16 256] [--generated 100000]

Measures what differential privacy of whole people costs: NDCG@50 by epsilon, with and without the components of the views.

Runs are benchmarks/ml-latest-small/fedvlr-history.yaml and fedvlr-fedavg.yaml from a random start, people weighed alike, on
three devices under secure sums, whose distributed noise is counted over `--rounds` rounds at delta 1e-5. All three devices'
noise is counted on (privacy.noise_share 1), so a sum has exactly the noise that central noise would have. The clip
is below the norm that nearly everybody has in round 1: 0.06 to 0.72 with history, 0.011 to 0.063 with fedavg. Adam steps on the
sum's direction, so that how far below makes little difference.

`--times` divides the noise: what it does to the sum of `times` as many people like these, at the same epsilon. Its rows are
computed federations of that many people in this sense, and no measured ones. Figures are those of the last round: none is
chosen. With `--generated` it is so many people of the generated shop (demo.yaml), in place of
MovieLens. Runs that are there already are read. Ends with one line of JSON.
"""

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tessera.common.datasets import convert_shop
from tessera.common.errors import DataError
from tessera.common.metrics.names import ALL, NDCG, TEST, MetricName
from tessera.common.metrics.records import ResultRecord, StatisticsRecord, read_records, read_result
from tessera.common.privacy.accounting import noise_for
from tessera.deploy.provisioning.datasets import VARIABLE

HERE = Path(__file__).parent
TESSERA = Path(sys.executable).with_name("tessera")
METRIC = MetricName(TEST, ALL, NDCG, 50)
DELTA, NODES = 1e-5, 3
METHODS: dict[str, tuple[str, float, tuple[str, ...]]] = {
    "history": ("ml-latest-small/fedvlr-history.yaml", 0.1, ("views.spectral_rounds=0", "server.learning_rate=0.01")),
    "fedavg": ("ml-latest-small/fedvlr-fedavg.yaml", 0.01, ("local.weighting=users",)),
    "shop": ("demo.yaml", 0.1, ("data.kind=converted", "local.prior=0")),
}
"""By method its settings file, the clip, and what else differs from that file."""
EXPLAINED = {"all views": "1", "components": "0.9999"}
UNTRAINED = ("popularity", "content-all")
"""What is beside each row: rankings that learn nothing, and so cost no epsilon; popularity is not noised here."""
LEVELS = ("none", "clipped", "8", "4", "1")


def main() -> None:
    """Run what is not there yet, print the table, then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get(VARIABLE, ".")))
    parser.add_argument("--runs", type=Path, default=Path("runs/private"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["history", "fedavg"])
    parser.add_argument("--generated", type=int, default=0)
    parser.add_argument("--sent", nargs="+", choices=EXPLAINED, default=list(EXPLAINED))
    parser.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS))
    parser.add_argument("--times", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.generated:
        arguments.methods = ["shop"]
        arguments.data = arguments.runs / "datasets" / f"shop-{arguments.generated}"
        if not arguments.data.exists():
            convert_shop(arguments.data, n_users=arguments.generated)
    print(
        f"{'method':10}{'sent':12}{'epsilon':>9}{'people':>10}{'noise':>9}{'NDCG@50':>9}{'MB up':>7}"
        f"{'popularity':>12}{'content-all':>12}"
    )
    rows = []
    for method, sent, level in itertools.product(arguments.methods, arguments.sent, arguments.levels):
        for times in arguments.times if level not in ("none", "clipped") else [1]:
            row = measure(method, sent, level, times, arguments)
            rows.append(row)
            cells = f"{row['epsilon']:>9}{row['people']:>10}{row['noise']:>9.3f}{row['ndcg@50']:>9.2f}{row['mb_up']:>7}"
            print(f"{method:10}{sent:12}{cells}{row['popularity']:>12}{row['content-all']:>12}", flush=True)
    print(json.dumps({"rounds": arguments.rounds, "seed": arguments.seed, "delta": DELTA, "rows": rows}))


def measure(method: str, sent: str, level: str, times: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row. Raises `DataError` when the run fails."""
    name = "-".join(
        [
            arguments.data.name if arguments.generated else method,
            sent.replace(" ", "-"),
            level,
            str(times),
            str(arguments.rounds),
            str(arguments.seed),
        ]
    )
    noise = 0.0 if level in ("none", "clipped") else noise_for(float(level), arguments.rounds, DELTA) / times
    changes = [
        f"name={name}",
        f"rounds={arguments.rounds}",
        f"seed={arguments.seed}",
        f"evaluation.every={arguments.rounds}",
    ]
    config, clip, own = METHODS[method]
    changes += [
        *own,
        *([f"data.folder={arguments.data.name}"] if arguments.generated else []),
        f"wire.explained={EXPLAINED[sent]}",
    ]
    if level != "none":
        changes += [f"privacy.clip={clip}"]
    if noise:
        changes += ["privacy.secure=true", "privacy.noise=distributed", "privacy.noise_share=1"]
        changes += [f"privacy.noise_multiplier={noise}", f"privacy.delta={DELTA}"]
    run = arguments.runs / name
    if not any(isinstance(line, ResultRecord) for line in read_records(run)):
        train(HERE / config, changes, run, arguments.data)
    result = read_result(run)
    people = next(line.users for line in read_records(run) if isinstance(line, StatisticsRecord))
    return {
        "method": method, "sent": sent, "epsilon": level, "people": int(people) * times, "noise": noise,
        "ndcg@50": round(result.scores[METRIC], 2), "mb_up": round(result.bytes_up_per_node / 1e6, 2),
        **{name: round(result.baselines.get(METRIC.of(name), math.nan), 2) for name in UNTRAINED},
    }  # fmt: skip


def train(config: Path, changes: list[str], run: Path, data: Path) -> None:
    """Train on `NODES` devices in this process's place. Raises `DataError` when that fails."""
    command: list[str | Path] = [TESSERA, "train", config, "--nodes", str(NODES), "--data", data, "--runs", run.parent]
    command += ["--overwrite", *itertools.chain.from_iterable(("--set", change) for change in changes)]
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.with_suffix(".log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise DataError(f"{run.name} failed: {run.with_suffix('.log')} says why")


if __name__ == "__main__":
    main()
