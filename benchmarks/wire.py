"""python -m tessera.benchmarks.wire [--data FOLDER] [--runs FOLDER] [--only GRID] [--quick]

Measures how many bytes shorter number formats of views and gradients save, and how much NDCG they lose.

On ml-latest-small with one node and on gift cards with few users a node: the grids ml-latest-small/wire.yaml and
gift-cards-2018/wire.yaml. And what devices send that answer in secure sums, or alone: ml-latest-small/devices.yaml, twenty
nodes, bytes of a node. Losses are shares in % of what float32 reaches with the same seeds, in the rounds that validation
selects, and "all along" in the mean of all evaluations, which depends less on luck. The interval of the difference is over
users, for formats with as many seeds. Chosen is what is best on validation with the first seed among those that take at most a
tenth of float32's bytes. A killed run goes on where it was. Ends with one line of JSON. Datasets are found in --data or
TESSERA_DATA.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl

from tessera.benchmarks.harness.runner import run_bench
from tessera.benchmarks.harness.spec import BenchSpec
from tessera.benchmarks.harness.tables import Outcome
from tessera.common.metrics.names import ALL, NDCG, TEST, VALIDATION, MetricName
from tessera.common.metrics.records import evaluations

GRIDS = {
    "ml-latest-small": "ml-latest-small/wire.yaml",
    "gift-cards-2018": "gift-cards-2018/wire.yaml",
    "devices": "ml-latest-small/devices.yaml",
}
BY_NODE = ("devices",)
"""Grids whose bytes are those of a node; others' are of a user."""
BUDGET = 0.1
METRICS = {part: MetricName(part, ALL, NDCG, 50) for part in (VALIDATION, TEST)}

Row = dict[str, Any]


def main() -> None:
    """Run all grids, or one; print a table for each, then all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("TESSERA_DATA"))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", choices=GRIDS)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    found = {}
    for grid in [arguments.only] if arguments.only else GRIDS:
        bench = BenchSpec.load(Path(__file__).parent / GRIDS[grid], arguments.quick)
        outcome = run_bench(bench, arguments.data, arguments.runs, lambda line: print(line, flush=True))
        found[grid] = rows_of(outcome, arguments.runs / bench.name, bench, "node" if grid in BY_NODE else "user")
        show(grid, found[grid])
    print(json.dumps(found))


def rows_of(outcome: Outcome, runs: Path, bench: BenchSpec, of: str) -> list[Row]:
    """A row for each pair of formats, whose `runs` are there, and one for popularity: means over seeds; NDCG is in %, bytes
    are kB for a user, or what else they are `of`, and round. What others are compared with is the grid's first method."""
    traffic = pl.col(f"bytes_down_per_{of}") + pl.col(f"bytes_up_per_{of}")
    table, reference = outcome.table.with_columns((traffic / 1000).alias("kb")), next(iter(bench.methods))
    intervals = {row["method"]: [row["ndcg_low"], row["ndcg_high"]] for row in outcome.differences.to_dicts()}
    plain, rows = table.filter(pl.col("method") == reference), []
    for (method,), own in table.filter(pl.col("kb").is_not_null()).group_by("method", maintain_order=True):
        same = plain.filter(pl.col("seed").is_in(own["seed"].to_list()))
        row: Row = {"formats": method, "seeds": len(own), "of float32": mean(own, "kb") / mean(same, "kb")}
        row |= {f"kB {way}": mean(own, f"bytes_{way}_per_{of}") / 1000 for way in ("down", "up")}
        for part, metric in METRICS.items():
            row[f"NDCG {part}"] = mean(own, str(metric))
            row[f"lost {part}"] = lost(mean(own, str(metric)), mean(same, str(metric)))
            along = (mean_along(runs, name, own["seed"].to_list(), metric) for name in (str(method), reference))
            row[f"lost {part}, all along"] = lost(*along)
        row["difference on test, 95%"] = intervals.get(str(method)) if len(own) == len(plain) else None
        row["first"] = own[str(METRICS[VALIDATION])][0]
        rows.append(row)
    small = [row for row in rows if row["of float32"] <= BUDGET]
    if small:
        max(small, key=lambda row: row["first"])["chosen"] = True
    crowd = table.filter(pl.col("method") == "popularity")
    scores = {f"NDCG {part}": mean(crowd, str(metric)) for part, metric in METRICS.items()}
    return [*rows, {"formats": "popularity", **scores}]


def mean(rows: pl.DataFrame, column: str) -> float:
    """The mean over seeds."""
    return float(rows[column].to_numpy().mean())


def mean_along(runs: Path, method: str, seeds: Sequence[int], score: MetricName) -> float:
    """The mean of a score over all evaluations of a method's runs."""
    return fmean(scores[score] for seed in seeds for scores in evaluations(runs / method / f"seed{seed}"))


def lost(own: float, plain: float) -> float:
    """What share of float32's figure is lost, in %."""
    return 100 * (1 - own / plain)


def show(grid: str, rows: list[Row]) -> None:
    """Print the table."""
    columns = [column for column in rows[0] if column != "first"]
    print(f"\n{grid}: views-gradients, K = 50, means over seeds, * chosen\n")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(cell(row, column) for column in columns) + " |")
    print()


def cell(row: Row, column: str) -> str:
    """One cell: a dash where there is nothing."""
    value = row.get(column)
    if column == "formats":
        return f"{value} *" if row.get("chosen") else str(value)
    if isinstance(value, list):
        return f"{value[0]:+.2f} to {value[1]:+.2f}"
    if value is None:
        return "-"
    return f"{100 * value:.1f}%" if column == "of float32" else str(value) if column == "seeds" else f"{value:.2f}"


if __name__ == "__main__":
    main()
