"""Shows what a run ended with: a table, and one line of JSON for programs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.common.config.settings import Settings
from tessera.common.metrics.names import (
    ACCURACY,
    ALL,
    BEFORE,
    COLD,
    HR,
    NDCG,
    TEST,
    USERS,
    VALIDATION,
    WARM,
    MetricName,
    Scores,
)
from tessera.common.metrics.records import (
    Compared,
    ResultRecord,
    Ties,
    told_epsilon,
)
from tessera.common.utils.text.wording import number_of
from tessera.deploy.api.progress import in_bytes
from tessera.deploy.api.tables import print_table
from tessera.server.live.run_info import RunInfo


def show_result(console: Console, result: ResultRecord, settings: Settings, run_dir: Path) -> None:
    """Print what a run ended with: the table, and where its folder is."""
    asks = settings.asks_questions
    table = answers_table(result, settings.mosaic.classes) if asks else result_table(result, settings.evaluation.ks)
    print_table(console, table)
    for told in filter(None, (compared_line(result.compared), uncounted_line(result), tied_line(result.ties))):
        console.print(told, highlight=False)
    console.print(traffic_line(result), highlight=False)
    console.print(privacy_line(result, settings), highlight=False)
    console.print(f"run folder: {run_dir}", markup=False, soft_wrap=True)


def traffic_line(result: ResultRecord) -> str:
    """Bytes of a round: of one person alone on a device, and of a share in a node that hosts many."""
    share = f"{in_bytes(result.bytes_down_per_user)} down and {in_bytes(result.bytes_up_per_user)} up"
    if result.bytes_up_alone is None or result.bytes_down_alone is None:
        return f"a round: {share} for each user, by their share of a node's messages"
    own = f"{in_bytes(result.bytes_down_alone)} down and {in_bytes(result.bytes_up_alone)} up"
    return f"a round: {own} for one person alone on a device; {share} for each user of this run, by their share of a node's"


def compared_line(compared: Compared | None) -> str:
    """Say that the baselines are not of the run's people, where they are not."""
    if compared is None or compared.same:
        return ""
    if not compared.baselines_nodes:
        return "no baselines: no device answered to them"
    row, others = (
        f"{number_of(round(people), 'person', 'people')} on {number_of(nodes, 'node')}"
        for people, nodes in (
            (compared.people, compared.nodes),
            (compared.baselines_people, compared.baselines_nodes),
        )
    )
    told = "other people, or other targets: the run's nodes were no longer the same" if row == others else others
    return f"not of the same people: the run's row is of {row}, the baselines are of {told}"


def uncounted_line(result: ResultRecord) -> str:
    """Why the table does not tell warm from cold targets, where it does not."""
    if not result.uncounted:
        return ""
    known = any(name.baseline == "popularity" for name in result.baselines)
    return f"warm and cold targets are not told apart{'' if known else ', nor is there popularity'}: {result.uncounted}"


def tied_line(ties: Ties | None) -> str:
    """How many test targets time does not decide on, where there are any."""
    if ties is None or not ties.test:
        return ""
    return f"{ties.test:.1f}% of the test targets have the time of another event of the same person: {ties.order}"


def privacy_line(result: ResultRecord, settings: Settings) -> str:
    """What epsilon the run has, of what, and why it ended where it was not to."""
    if result.epsilon is None:
        return "epsilon: none, sums without noise"
    told = f"epsilon of training: {told_epsilon(result.epsilon)} at delta {result.delta:g}, "
    told += "of each person's uploads" if settings.privacy.noise == "local" else "of the sums that the server sees"
    most = settings.privacy.max_epsilon
    ended = (
        f"; another round would pass privacy.max_epsilon {most:g}" if most and result.trained < settings.rounds else ""
    )
    return f"{told}; counts of items and evaluations have no noise{ended}"


def runs_table(runs: Sequence[RunInfo]) -> Table:
    """How runs stand, a row each."""
    table = Table("run", "state", "round", "people", "nodes", "best, %", "MB", box=SIMPLE_HEAD)
    for run in runs:
        best = f"{run.best[1]:.2f} in round {run.best[0]}" if run.best else "-"
        people = f"{run.people:,}" if run.began else "-"
        state = f"{run.state}, for ever" if run.forever and run.state == "running" else run.state
        nodes, megabytes = str(run.nodes) if run.rounds else "-", f"{run.bytes / 1e6:.1f}"
        table.add_row(escape(run.name), state, str(run.round), people, nodes, best, megabytes)
    return table


def methods(result: ResultRecord) -> dict[str, Scores]:
    """The run's scores and those of the trivial rankings, by what a table calls them."""
    rows: dict[str, Scores] = {f"{result.name}, round {result.selected_round}": result.scores}
    for name, value in result.baselines.items():
        rows.setdefault(name.baseline, {})[name.of("")] = value
    return rows


def result_table(result: ResultRecord, ks: tuple[int, ...]) -> Table:
    """The run beside the trivial baselines on test: all targets, and warm and cold ones apart at the largest K."""
    rows, k, own = methods(result), max(ks), result.scores
    sizes = {group: int(own.get(MetricName(TEST, group, USERS), 0)) for group in (WARM, COLD)}
    title = "test, in %, ties at their expected value"
    if any(sizes.values()):
        title += f"; people by target: {sizes[WARM]} warm and {sizes[COLD]} cold"
    columns = {f"{metric.upper()}\n@{cut}": MetricName(TEST, ALL, metric, cut) for metric in (HR, NDCG) for cut in ks}
    columns |= {f"{group}\nHR@{k}": MetricName(TEST, group, HR, k) for group, size in sizes.items() if size}
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("method", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True, min_width=5)
    for row, scores in rows.items():
        cells = (f"{scores[name]:.2f}" if name in scores else "-" for name in columns.values())
        table.add_row(row, *cells, style="bold" if scores is own else None)
    return table


def answers_table(result: ResultRecord, classes: Iterable[str] = ()) -> Table:
    """What devices answer rightly, on their own tests and on others', as they stand at the end of the run, and before it; after
    it also those of each of several `classes`."""
    table = Table(title="right answers in %, means over devices", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("as the device stands")
    names = {"self": "own tests", "others": "others' tests", VALIDATION: "own validation"}
    for column in names.values():
        table.add_column(column, justify="right")
    rows = {"by chance": "chance", "tower before training": "frozen", "before the last merge": BEFORE}
    rows |= {"after the last merge": "after", "own branch alone": "local", "federation's branch alone": "global"}
    scores = result.baselines | result.scores
    found = {shown: [MetricName(part, group, ACCURACY) for group in names] for shown, part in rows.items()}
    if len(several := dict.fromkeys(classes)) > 1:
        at_end = {one: [MetricName("after", f"{group}-{one}", ACCURACY) for group in names] for one in several}
        found |= {f"after the last merge, {one}": figures for one, figures in at_end.items()}
    for shown, figures in found.items():
        table.add_row(shown, *(f"{scores[name]:.1f}" if name in scores else "-" for name in figures))
    return table


def summary(result: ResultRecord) -> dict[str, Any]:
    """The run's figures as one flat-enough JSON object: scores in %, bytes of a round on average."""
    nested: dict[str, dict[str, float]] = {}
    for name, value in result.scores.items():
        group = name.part if name.group == ALL else f"{name.part}_{name.group}"
        nested.setdefault(group, {})[name.measure] = round(value, 3)
    baselines: dict[str, dict[str, float]] = {}
    for name, value in result.baselines.items():
        if name.counts:
            continue
        if (name.part, name.group) == (TEST, ALL):
            baselines.setdefault(name.baseline, {})[name.measure] = round(value, 3)
        elif not name.baseline and name.group in ("self", "others"):  # how devices answer before any training
            baselines.setdefault(name.part, {})[f"{name.group}/{name.measure}"] = round(value, 3)
    told = result.to_json()
    figures = {name: told.get(name) for name in ("name", "seed", "rounds", "selected_round")}
    traffic = {name: value for name, value in told.items() if name.startswith("bytes_")}
    seconds = {
        "seconds": round(result.seconds, 1),
        "seconds_per_round": round(result.seconds / max(1, result.trained), 3),
    }
    private = {"epsilon": "none" if result.epsilon is None else round(result.epsilon, 3)}
    private |= {"delta": result.delta} if result.delta else {}
    private |= {name: told[name] for name in ("compared", "uncounted", "ties") if name in told}
    return {**figures, **nested, "baselines": baselines, **seconds, **traffic, **private}
