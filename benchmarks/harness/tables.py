"""Makes the tables of a bench: quality over seeds, who is served, what it costs, and paired differences over people."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from tessera.benchmarks.harness.per_user import METRICS, MOST_EVENTS, QUARTILES, Quartiles
from tessera.benchmarks.harness.qa_tables import answered
from tessera.benchmarks.harness.view_tables import collapsed, sampled
from tessera.common.data.interactions import TIES
from tessera.common.metrics.names import (
    ALL,
    COLD,
    COVERAGE,
    HR,
    NDCG,
    NEW_USERS,
    TEST,
    UNTRAINED,
    USERS,
    VALIDATION,
    WARM,
    MetricName,
    names_in,
)

QUALITY = "Quality on test, in %, ties at their expected value: mean and [smallest, largest] over seeds"
SERVED = "Who is served: targets that occur in training and those that do not; the catalogue's share in anybody's first"
TIED = "tied_test"
"""The column with the share of test targets that time does not decide on, in %."""
PEOPLE = "people"
"""The column with how many people's test targets a row is of."""
GROUPS = (WARM, COLD, NEW_USERS, UNTRAINED)


@dataclass(frozen=True)
class Best:
    """The federated method that is best on validation, by a measure in %, and the file with its settings."""

    dataset: str
    method: str
    measure: str
    validation: float
    config: Path

    def sentence(self) -> str:
        """What to do with it."""
        of = f" of {self.dataset}" if self.dataset else ""
        told = f"best on validation{of}: {self.method}, {self.measure} {self.validation:.2f}%"
        return f"{told}. To train it: tessera train {self.config}"


@dataclass(frozen=True)
class Outcome:
    """What a bench found: a row a dataset, method and seed, and a row a dataset and pair that was compared."""

    table: pl.DataFrame
    differences: pl.DataFrame
    best: tuple[Best, ...] = ()
    """One a dataset, where anything was learnt."""

    @property
    def k(self) -> int:
        """The largest K, which is reported; 1 where nothing is ranked."""
        return max((name.k or 1 for name in names_in(self.table.columns)), default=1)

    def means(self) -> dict[str, dict[str, Any]]:
        """Means over seeds of what the tables show at the largest K, by "method" or, with several, "dataset/method"; what is
        not there is left out, and what failed says why."""
        found, several = {}, self.table["dataset"].n_unique() > 1
        questions = [name for _, columns, _ in answered(self.table) for name in columns.values()]
        shown = questions or [*_quality(self.k).values(), *_served(self.k).values(), *_cost().values()]
        for (dataset, method), rows in self.table.group_by("dataset", "method", maintain_order=True):
            means = {name: _mean(rows[name]) for name in shown if name in rows.columns and rows[name].count()}
            reasons = {"left_out": rows["left_out"].drop_nulls().to_list()}
            found[f"{dataset}/{method}" if several else str(method)] = means | (reasons if reasons["left_out"] else {})
        return found

    def markdown(self) -> str:
        """All tables; under a heading for each dataset, where there are several."""
        datasets = self.table["dataset"].unique(maintain_order=True).to_list()
        parts = []
        for dataset in datasets:
            rows = self.table.filter(pl.col("dataset") == dataset)
            pairs = self.differences.filter(pl.col("dataset") == dataset)
            parts += [f"# {dataset}\n"] if len(datasets) > 1 else []
            if questions := answered(rows):
                in_kb = rows.with_columns(pl.col("^bytes_.*$") / 1000)
                parts += [_table(title, in_kb, columns, about) for title, columns, about in questions]
                continue
            parts += [_table(QUALITY, rows, _quality(self.k), ("seeds", "chosen")), _of_others(rows), _tied(rows)]
            parts.append(_table(f"{SERVED} {self.k}", rows, _served(self.k)))
            for title, columns in (sampled(rows), *collapsed(rows, self.k)):
                parts.append(_table(title, rows, columns))
            parts += [_by_quartile(rows, quartiles, self.k) for quartiles in QUARTILES]
            in_kb = rows.with_columns(pl.col("^bytes_.*$") / 1000)
            parts.append(_table("Cost, means over seeds", in_kb, _cost(), spread=False))
            parts += [_differences(pairs, self.k)] if len(pairs) else []
        return "\n".join(filter(None, parts))


def _quality(k: int) -> dict[str, str]:
    columns = {f"HR@{k}": str(MetricName(TEST, ALL, HR, k)), f"NDCG@{k}": str(MetricName(TEST, ALL, NDCG, k))}
    return columns | {f"NDCG@{k} on validation": str(MetricName(VALIDATION, ALL, NDCG, k))}


def _served(k: int) -> dict[str, str]:
    pairs = [(group, metric) for group in GROUPS for metric in METRICS]
    columns = {f"{group} {metric.upper()}@{k}": str(MetricName(TEST, group, metric, k)) for group, metric in pairs}
    return columns | {f"coverage@{k}": str(MetricName(TEST, ALL, COVERAGE, k))}


def _cost() -> dict[str, str]:
    columns = {"private numbers a person": "private_parameters", "with those received": "held_parameters"}
    traffic = {"a person alone on a device": "alone", "a share in a node": "per_user", "a node": "per_node"}
    for who, of in traffic.items():
        columns |= {f"kB {way} a round, {who}": f"bytes_{way}_{of}" for way in ("down", "up")}
    return columns | {"seconds a round": "seconds_per_round", "seconds in all": "seconds", "epsilon": "epsilon"}


def _by_quartile(rows: pl.DataFrame, quartiles: Quartiles, k: int) -> str:
    """The quartiles' sizes are the same for all methods, and said in the title."""
    columns: dict[str, str] = {}
    sizes = []
    for name in quartiles.groups:
        facts = [str(MetricName(TEST, name, fact)) for fact in (USERS, MOST_EVENTS)]
        if facts[0] in rows.columns and rows[facts[0]].count():
            people, most = (rows[fact].drop_nulls()[0] for fact in facts)
            sizes.append(f"{people:.0f} people up to {most:.0f}")
            columns |= {f"{name} {metric.upper()}@{k}": str(MetricName(TEST, name, metric, k)) for metric in METRICS}
    return _table(f"By quartile of {quartiles.title}: {', '.join(sizes)}", rows, columns)


def _table(
    title: str, rows: pl.DataFrame, columns: Mapping[str, str], about: Sequence[str] = (), spread: bool = True
) -> str:
    """A table with those of `columns` that any method has a value in, and of the methods that have any; "" without any."""
    columns = {head: name for head, name in columns.items() if name in rows.columns and rows[name].count()}
    if not columns and not about:
        return ""
    lines = [f"{title}\n", "| " + " | ".join(["method", *columns, *about]) + " |"]
    lines.append("|---" * (1 + len(columns) + len(about)) + "|")
    for (method,), own in rows.group_by("method", maintain_order=True):
        reasons = own["left_out"].drop_nulls().to_list()
        cells = [_cell(own[name].drop_nulls().to_list(), spread) for name in columns.values()]
        chosen = own["chosen"].drop_nulls().to_list()[:1]
        remarks = "; ".join(filter(None, [*chosen, *(f"left out: {reason}" for reason in reasons)]))
        said = {"seeds": str(own["seed"].count() - len(reasons)) if own["seed"].count() else "-", "chosen": remarks}
        if about or any(cell != "-" for cell in cells):
            lines.append("| " + " | ".join([str(method), *cells, *(said[name] for name in about)]) + " |")
    return "\n".join(lines) + "\n"


def _of_others(rows: pl.DataFrame) -> str:
    """Say which rows are of how many people, where not all are of as many; "" where they are. Seeds may draw who is cold."""
    found: dict[tuple[float, ...], list[str]] = {}
    for (method,), own in rows.group_by("method", maintain_order=True):
        if people := tuple(sorted(set(own[PEOPLE].drop_nulls().to_list()))):
            found.setdefault(people, []).append(str(method))
    told = "; ".join(f"{' or '.join(f'{one:.0f}' for one in many)}: {', '.join(own)}" for many, own in found.items())
    return f"Not all rows are of the same people. By how many: {told}\n" if len(found) > 1 else ""


def _tied(rows: pl.DataFrame) -> str:
    """Say how many targets of the test time does not decide on; "" where none are tied, or it is not known."""
    tied = rows[TIED].drop_nulls().to_list()
    return (
        f"{max(tied):.1f}% of the test targets have the time of another event of the same person: {TIES}\n"
        if any(tied)
        else ""
    )


def _mean(values: pl.Series) -> float:
    """Five significant digits of the mean."""
    return float(f"{statistics.fmean(values.drop_nulls()):.5g}")


def _cell(values: Sequence[float], spread: bool) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    shown = f"{mean:.2f}" if mean < 100 or spread else f"{mean:,.0f}"
    return shown + (f" [{min(values):.2f}, {max(values):.2f}]" if spread and len(values) > 1 else "")


def _differences(pairs: pl.DataFrame, k: int) -> str:
    """Bold where the interval excludes 0."""
    title = "Differences on test, in points: mean and 95% interval of a paired bootstrap over people, seeds averaged"
    lines = [f"{title}; not corrected for the number of comparisons\n"]
    lines += [f"| difference | HR@{k} | NDCG@{k} |", "|---|---|---|"]
    for row in pairs.to_dicts():
        cells = []
        for metric in METRICS:
            mean, low, high = row[metric], row[f"{metric}_low"], row[f"{metric}_high"]
            mark = "**" if low > 0 or high < 0 else ""
            cells.append(f"{mark}{mean:+.2f}{mark} [{low:+.2f}, {high:+.2f}]")
        lines.append(f"| {row['method']} - {row['minus']} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"
