"""What a report says of runs and of grids, gathered from their folders."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tessera.common.config.loading import flat
from tessera.common.errors import DataError
from tessera.common.metrics.names import ALL, COLD, HR, NDCG, TEST, WARM, MetricName
from tessera.common.utils.tables import read_table
from tessera.common.utils.text.wording import number_of
from tessera.deploy.api.display import compared_line, methods, privacy_line, tied_line, traffic_line, uncounted_line
from tessera.server.live.run_info import RunInfo

RESULTS, DIFFERENCES = "results.parquet", "differences.parquet"
PACKAGES = ("torch", "flwr", "ray", "numpy", "polars", "peft", "transformers")


@dataclass(frozen=True)
class Table:
    """A table: its title, the heads of its columns, and its rows, the first cell of each its name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def data(run: RunInfo) -> list[tuple[str, str]]:
    """Who took part, and on how many events."""
    if run.began is None:
        return []
    first, asks = run.began, run.settings.asks_questions
    facts = [("devices" if asks else "people", f"{first.users:,.0f}"),
             ("questions of their own" if asks else "training events", f"{first.events:,.0f}"),
             ("nodes", f"{first.nodes:,}")]  # fmt: skip
    if first.groups:
        facts.append(("secure sums", f"of {number_of(first.groups, 'group')} of nodes"))
    for part, people in (("validation", first.validation), ("test", first.test)):
        if people is not None:
            facts.append((f"people with a {part} item", f"{people:,.0f}"))
    return facts


def happened(run: RunInfo) -> list[str]:
    """What went wrong on the way, and what was done about it, a line each kind."""
    said = [f"{times} answers were not taken: {kind}" for kind, times in run.dropped.items()]
    if abandoned := ", ".join(str(line.round) for line in run.abandoned):
        said = [f"rounds that came to nothing: {abandoned}", *said]
    return said


def notes(run: RunInfo) -> list[str]:
    """What there is to know beside the table."""
    told = (compared_line(run.record.compared), uncounted_line(run.record), tied_line(run.record.ties))
    return [line for line in told if line]


def cost(run: RunInfo) -> list[str]:
    """Bytes and privacy, in sentences."""
    return [traffic_line(run.record), privacy_line(run.record, run.settings)]


def quality(runs: Sequence[RunInfo]) -> Table:
    """HR and NDCG of every run on test, each with its trivial rankings below it."""
    ks = sorted({k for run in runs for k in run.settings.evaluation.ks})
    cold = any(name.group == COLD for run in runs for name in run.record.scores if name.part == TEST)
    groups = (ALL, WARM, COLD) if cold else (ALL,)  # else warm targets are all there are
    names = [MetricName(TEST, group, metric, k) for k in ks for group in groups for metric in (HR, NDCG)]
    names = [name for name in names if any(name in run.record.scores for run in runs)]
    rows = []
    for run in runs:
        for place, (method, scores) in enumerate(methods(run.record).items()):
            title = (
                method
                if len(runs) == 1
                else f"{run.name}, {method.rpartition(', ')[2]}"
                if not place
                else f"{run.name}: {method}"
            )
            rows.append((title, *(f"{scores[name]:.2f}" if name in scores else "-" for name in names)))
    columns = ("", *(_head(name) for name in names))
    return Table(
        "Quality on test, in %",
        columns,
        tuple(rows),
        "Ties count at their expected value; the whole catalogue is ranked.",
    )


def answers(runs: Sequence[RunInfo]) -> Table:
    """Every figure of runs whose devices answer questions."""
    names = list(dict.fromkeys(name for run in runs for name in run.record.scores if not name.counts))
    rows = tuple(
        (str(name), *(f"{run.record.scores[name]:.2f}" if name in run.record.scores else "-" for run in runs))
        for name in names
    )
    return Table("Accuracy, in %", ("figure", *(run.name for run in runs)), rows)


def changed_settings(runs: Sequence[RunInfo]) -> Table:
    """Every setting of a run; of several, those in which they differ."""
    written = [flat(run.settings) for run in runs]
    keys = list(dict.fromkeys(key for one in written for key in one))
    shown = [key for key in keys if len(runs) == 1 or len({one.get(key, "-") for one in written}) > 1]
    rows = tuple((key, *(one.get(key, "-") for one in written)) for key in shown)
    return Table(
        "Settings" if len(runs) == 1 else "Settings in which the runs differ",
        ("setting", *(run.name for run in runs)),
        rows,
    )


def environment() -> list[tuple[str, str]]:
    """Versions, and the commit where the report is made in a checkout: of the report, not of the runs, which do not note it."""
    found = [("Tessera", _version("tessera"))]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if not commit.returncode:
        found.append(("commit", commit.stdout.strip()))
    found.append(("Python", platform.python_version()))
    return found + [(name, _version(name)) for name in PACKAGES]


@dataclass(frozen=True)
class GridFacts:
    """What a grid of `tessera bench` left: its table and the paired differences."""

    folder: Path
    table: pl.DataFrame
    differences: pl.DataFrame
    text: str

    @classmethod
    def read(cls, folder: Path) -> "GridFacts":
        """Raises `DataError` where no grid came to its end."""
        if not (folder / RESULTS).exists():
            raise DataError(f"{folder} holds no grid that came to its end: there is no {RESULTS} in it")
        differences = (
            read_table(folder / DIFFERENCES, ("method", "minus", NDCG))
            if (folder / DIFFERENCES).exists()
            else pl.DataFrame()
        )
        return cls(
            folder, read_table(folder / RESULTS, ("method", "seed")), differences, (folder / "results.md").read_text()
        )

    def tables(self) -> list[Table]:
        """The tables of results.md."""
        found: list[Table] = []
        title, lines = "", list[tuple[str, ...]]()
        for line in [*self.text.splitlines(), ""]:
            if line.startswith("|"):
                lines.append(tuple(cell.strip().replace("**", "") for cell in line.strip("|").split("|")))
            elif lines:
                found.append(Table(title, lines[0], tuple(lines[2:])))
                title, lines = line, []
            else:
                title = line.lstrip("# ") or title
        return found


def _head(name: MetricName) -> str:
    """A metric as a column's head."""
    return f"{'' if name.group == ALL else name.group} {name.metric.upper()}@{name.k}".strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
