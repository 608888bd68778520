"""The commands `tessera runs list`, `show`, `compare`, `tail` and `page`: a folder of runs, whatever carried them out."""

import json
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.common.config.loading import flat
from tessera.common.errors import DataError
from tessera.deploy.api.tables import print_table
from tessera.deploy.cli.runs import completion

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Look at runs: list, show, compare and follow them, or open their page.",
)
console = Console(highlight=False)
Runs = Annotated[Path, typer.Option(help="Folder the runs lie in.")]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.", autocompletion=completion.runs)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PAUSE = 0.5
"""Seconds between two looks at a run that is followed."""


@app.command("list", epilog="Example: tessera runs list --runs runs")
def list_(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List the runs below a folder, the newest first: state, round, people, and the best round so far."""
    from tessera.deploy.api.display import runs_table
    from tessera.server.live.run_info import read_runs, runs_in

    found = read_runs(runs_in(_there(runs)))
    if as_json:
        typer.echo(json.dumps([run.facts() for run in found]))
        return
    if found:
        print_table(console, runs_table(found))
    else:
        console.print(f"{runs} holds no run that has begun", markup=False)


@app.command(epilog="Example: tessera runs show runs/demo")
def show(run: Run, as_json: Json = False) -> None:
    """Show how a run stands: its rounds, the best one, its bytes and what went wrong."""
    from tessera.deploy.api.display import runs_table
    from tessera.server.live.run_info import RunInfo

    found = RunInfo.read(run)
    if as_json:
        typer.echo(json.dumps(found.facts()))
        return
    print_table(console, runs_table([found]))
    if found.sums:
        console.print(found.sums, markup=False, soft_wrap=True)
    if found.reason:
        console.print(found.reason, markup=False, soft_wrap=True)
    for kind, times in found.dropped.items():
        console.print(f"{times} answers were not taken: {kind}", markup=False)
    for line in found.troubles:
        console.print(line, markup=False, soft_wrap=True)


@app.command(epilog="Example: tessera runs compare runs/demo runs/demo-grpc")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", autocompletion=completion.runs)
    ],
    as_json: Json = False,
) -> None:
    """Show runs side by side, and the settings in which they differ."""
    from tessera.deploy.api.display import runs_table
    from tessera.server.live.run_info import RunInfo

    found = [RunInfo.read(run) for run in runs]
    written = [flat(run.settings) for run in found]
    keys = [
        key
        for key in dict.fromkeys(key for one in written for key in one)
        if len({one.get(key) for one in written}) > 1
    ]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "runs": [run.facts() for run in found],
                    "settings": {key: [one.get(key) for one in written] for key in keys},
                }
            )
        )
        return
    print_table(console, runs_table(found))
    table = Table("setting", *(escape(run.name) for run in found), box=SIMPLE_HEAD)
    for key in keys:
        table.add_row(key, *(escape(one.get(key, "-")) for one in written))
    if keys:
        print_table(console, table)
    else:
        console.print("their settings are the same")


@app.command(epilog="Example: tessera runs tail runs/demo")
def tail(run: Run, follow: Annotated[bool, typer.Option(help="Go on until the run ends.")] = True) -> None:
    """Print what happened in a run, a line each, and go on as it goes on; Ctrl-C leaves the run alone."""
    from tessera.server.live.run_info import RunInfo

    shown = 0
    while True:
        now = RunInfo.read(run)
        for line in now.records[shown:]:
            console.print(line.sentence(), markup=False, soft_wrap=True)
        shown = len(now.records)
        if not follow or now.state != "running":
            console.print(f"{run.name}: {now.state}", markup=False)
            return
        time.sleep(PAUSE)


@app.command(epilog="Example: tessera runs page --runs runs")
def page(
    runs: Runs = Path("runs"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="A port of this machine; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Show runs with their curves as they come, in a browser on this machine. Ctrl-C ends it."""
    from tessera.deploy.pages.operator.app import OperatorPage, RunsFolder
    from tessera.deploy.pages.serving import say, serve

    serve(OperatorPage(RunsFolder(_there(runs))).app(), port, say(f"the page of {runs}", browser))


def _there(runs: Path) -> Path:
    if not runs.is_dir():
        raise DataError(f"{runs} is no folder: name the one that runs lie in by --runs")
    return runs
