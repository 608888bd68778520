"""What a person sees of a run: a progress bar while it runs, a table when it has ended, one line of JSON for programs."""

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from tessera.common.config.settings import Settings

Line = dict[str, Any]
SHOWN = 3
"""Troubles of a round that are shown; all of them are in the metrics."""


class RunDisplay:
    """Shows the lines of a run's metrics as they come: round, loss, metric, bytes, time left.

    On a terminal a bar moves; elsewhere each evaluation is a line of its own.
    """

    def __init__(self, settings: Settings, console: Console) -> None:
        self.settings, self.console = settings, console
        self.k = max(settings.evaluation.ks)
        self.score, self.nodes = "-", settings.federation.nodes
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[facts]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task(settings.name, total=settings.rounds, facts="waiting for nodes")

    def __enter__(self) -> "RunDisplay":
        """Show the bar."""
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        self.bar.stop()

    def report(self, line: Line) -> None:
        """Take one line of the metrics in."""
        if line["kind"] == "item_statistics":
            people, events, self.nodes = int(line["users"]), int(line["events"]), int(line["nodes"])
            told = f"{people} users on {line['nodes']} nodes, {events} training events; only sums over a node's people are sent"
            if self.settings.asks_questions:
                told = f"{line['nodes']} devices with {events} questions of their own; only adapters and signatures are sent"
            self.console.print(told, highlight=False)
        if line["kind"] == "abandoned":
            self.console.print(f"round {line['round']} was abandoned: {line['reason']}", markup=False)
        if line["kind"] != "round":
            return
        troubles = line.get("troubles", [])
        for trouble in troubles[:SHOWN]:
            self.console.print(f"round {line['round']}: {trouble}", markup=False, highlight=False)
        if len(troubles) > SHOWN:
            told = f"round {line['round']}: and {len(troubles) - SHOWN} more, in metrics.jsonl"
            self.console.print(told, highlight=False)
        if line["nodes"] != self.nodes:
            told = f"round {line['round']}: {line['nodes']} nodes answered, not {self.nodes}; {line['users']} users took part"
            self.console.print(told, markup=False, highlight=False)
            self.nodes = line["nodes"]
        metric = "right on validation" if self.settings.asks_questions else f"ndcg@{self.k}"
        if scores := line.get("scores"):
            name = "before/validation/accuracy" if self.settings.asks_questions else f"validation/all/ndcg@{self.k}"
            self.score = f"{scores.get(name, 0):.2f}"
        down, up = _bytes(line["bytes_down_per_user"]), _bytes(line["bytes_up_per_user"])
        facts = f"loss {line['loss']:.3f}  {metric} {self.score}%  per user {down} down {up} up"
        self.bar.update(self.task, completed=line["round"], facts=facts)
        if not self.console.is_terminal and scores:
            print(f"round {line['round']}/{self.settings.rounds}  {facts}  {line['seconds']:.2f} s", flush=True)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def show_result(console: Console, result: Line, settings: Settings, run_dir: Path) -> None:
    """Print what a run ended with: the table, and where its folder is."""
    table = answers_table(result) if settings.asks_questions else result_table(result, settings.evaluation.ks)
    console.print(table)
    down, up = (_bytes(result[f"bytes_{way}_per_user"]) for way in ("down", "up"))
    console.print(f"a round, for each user: {down} down, {up} up", highlight=False)
    console.print(f"run folder: {run_dir}", markup=False, soft_wrap=True)


def result_table(result: Line, ks: tuple[int, ...]) -> Table:
    """The run beside the trivial baselines on test: all targets, and warm and cold ones apart at the largest K."""
    rows = {f"{result['name']}, round {result['selected_round']}": result["scores"]}
    for name, value in result["baselines"].items():
        row, _, metric = name.partition("/")
        rows.setdefault(row, {})[metric] = value
    k, own = max(ks), result["scores"]
    sizes = {group: int(own.get(f"test/{group}/users", 0)) for group in ("warm", "cold")}
    title = f"test, in %, ties at their expected value; {sizes['warm']} warm and {sizes['cold']} cold targets"
    metrics = [f"{metric}@{cut}" for metric in ("hr", "ndcg") for cut in ks]
    columns = {metric.upper().replace("@", "\n@"): f"test/all/{metric}" for metric in metrics}
    columns |= {f"{group} HR\n@{k}": f"test/{group}/hr@{k}" for group, size in sizes.items() if size}
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, min_width=5)
    for row, scores in rows.items():
        cells = (f"{scores[name]:.2f}" if name in scores else "-" for name in columns.values())
        table.add_row(row, *cells, style="bold" if scores is own else None)
    return table


def answers_table(result: Line) -> Table:
    """What devices answer rightly, on their own tests and on others', as they stand at the end of the run, and before it."""
    table = Table(title="right answers in %, means over devices", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("as the device stands")
    names = {"self": "own tests", "others": "others' tests", "validation": "own validation"}
    for column in names.values():
        table.add_column(column, justify="right")
    rows = {"by chance": "chance", "tower before training": "frozen", "before the last merge": "before"}
    rows |= {"after the last merge": "after", "own branch alone": "local", "federation's branch alone": "global"}
    scores = result["baselines"] | result["scores"]
    for shown, variant in rows.items():
        values = (scores.get(f"{variant}/{name}/accuracy") for name in names)
        table.add_row(shown, *("-" if value is None else f"{value:.1f}" for value in values))
    return table


def summary(result: Line) -> Line:
    """The run's figures as one flat-enough JSON object: scores in %, bytes of a round on average."""
    nested: dict[str, dict[str, float]] = {}
    for name, value in result["scores"].items():
        part, group, metric = name.split("/")
        nested.setdefault(part if group == "all" else f"{part}_{group}", {})[metric] = round(value, 3)
    baselines: dict[str, dict[str, float]] = {}
    for name, value in result["baselines"].items():
        row, part, *group, metric = name.split("/")
        if (part, *group) in (("test", "all"), ("self",), ("others",)) and metric != "users":
            baselines.setdefault(row, {})[metric if group else f"{part}/{metric}"] = round(value, 3)
    figures = {name: result[name] for name in ("name", "seed", "rounds", "selected_round")}
    traffic = {name: value for name, value in result.items() if name.startswith("bytes_")}
    seconds = {
        "seconds": round(result["seconds"], 1),
        "seconds_per_round": round(result["seconds"] / max(1, result["rounds"]), 3),
    }
    return {**figures, **nested, "baselines": baselines, **seconds, **traffic}
