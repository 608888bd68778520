"""The `tessera` command."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Settings
from tessera.common.errors import RunError, TesseraError
from tessera.common.utils.folder_lock import hold_folder
from tessera.deploy.environment import quieten

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False, help=__doc__)
console = Console(highlight=False)
DEMO = Path(__file__).parents[2] / "benchmarks" / "demo.yaml"
SPEAKING = {"image": "its picture", "text": "its words", "id": "the crowd"}
"""What a view means to a person."""
NODES_HELP = "Number of nodes; the config's by default."


class ExecutorName(StrEnum):
    """Ways to run a federation."""

    inline = "inline"
    ray = "ray"
    grpc = "grpc"


Runs = Annotated[Path, typer.Option(help="Folder the runs lie in.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")]


@app.command(epilog="Example: tessera train benchmarks/demo.yaml --executor grpc --nodes 3 --set rounds=5")
def train(
    config: Annotated[Path, typer.Argument(help="Settings of the run, YAML.")],
    executor: Annotated[
        ExecutorName, typer.Option(help="One process, Ray workers, or separate processes over gRPC.")
    ] = ExecutorName.inline,
    data: Annotated[
        Path | None, typer.Option(help="The dataset's folder, or the one that holds it; TESSERA_DATA by default.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help=NODES_HELP)] = None,
    runs: Runs = Path("runs"),
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or killed.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a federation, print the table with its baselines, and end with one line of JSON."""
    changes = [*(change or ()), *([f"federation.nodes={nodes}"] if nodes else [])]
    _train(load_settings(config, executor.value, changes), executor.value, data, runs, resume, overwrite)


@app.command(epilog="Example: tessera demo --nodes 3")
def demo(
    config: Annotated[Path, typer.Argument(help="Settings of the run, YAML.")] = DEMO,
    nodes: Annotated[int | None, typer.Option(min=1, help=NODES_HELP)] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train on the generated shop, show ten recommendations with reasons, and how well the users were understood."""
    from tessera.benchmarks.harness.reliance import correlations, reliances
    from tessera.client.recommend import Personal

    settings = load_settings(config, "inline", [f"federation.nodes={nodes}"] if nodes else [])
    job, figures = _train(settings, "inline", None, runs, resume=False, overwrite=True, end=False)
    personal = Personal.open(job.devices[0])
    user = personal.people()[0][0].users[0]
    show_recommendations(personal, user, 10)
    found = correlations(reliances(job.catalogue, job.devices))
    parts = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    console.print(f"\nSpearman correlation of users' true reliance with what their devices learnt of it: {parts}")
    print(json.dumps(figures | {"reliance_spearman": {name: round(value, 3) for name, value in found.items()}}))


@app.command(epilog="Example: tessera recommend --data-dir runs/demo/devices/node-0 --user user-000 -k 10")
def recommend(
    data_dir: Annotated[Path, typer.Option(help="The device's folder.")],
    user: Annotated[str, typer.Option(help="Whom to recommend to.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    run: Annotated[str | None, typer.Option(help="Which run's state; the newest by default.")] = None,
) -> None:
    """Recommend items to a person from their device's own files; nothing is asked of a server."""
    from tessera.client.recommend import Personal

    show_recommendations(Personal.open(data_dir, run), user, k)


@app.command(epilog="Example: tessera bench benchmarks/ml-latest-small/table2.yaml --data DATA --quick")
def bench(
    grid: Annotated[Path, typer.Argument(help="Methods, choices, seeds and centralised baselines, YAML.")],
    data: Annotated[Path | None, typer.Option(help="As for train.")] = None,
    runs: Runs = Path("runs"),
    quick: Annotated[bool, typer.Option("--quick", help="Quick settings, one seed, no choices: does it run?")] = False,
    only: Annotated[
        list[str] | None,
        typer.Option(help="A method or baseline to run; may be repeated. The tables hold these alone."),
    ] = None,
) -> None:
    """Run a grid of methods, seeds and centralised baselines, choosing on validation only; a killed one goes on where it was.

    Writes results.parquet, differences.parquet and results.md, prints the tables, and ends with one line of JSON.
    """
    from tessera.benchmarks.harness.runner import run_bench
    from tessera.benchmarks.harness.spec import BenchSpec

    loaded = BenchSpec.load(grid, quick, only or ())
    with hold_folder(runs / loaded.name):
        outcome = run_bench(loaded, data, runs, lambda text: console.print(text, markup=False, soft_wrap=True))
    console.print(outcome.markdown(), markup=False, soft_wrap=True)
    print(json.dumps({"name": loaded.name, "folder": str(runs / loaded.name), "means": outcome.means()}))


def show_recommendations(personal: Any, user: str, k: int) -> None:
    """Print a person's recommendations, each with the view that speaks for it, and how far they go by each view."""
    items, reliance = personal.recommend(user, k)
    table = Table(
        "",
        "item",
        "score",
        "because of",
        "as in",
        title=f"for {escape(user)}, from the device's own files",
        box=SIMPLE_HEAD,
    )
    for place, item in enumerate(items, 1):
        table.add_row(
            str(place), escape(item.title), f"{item.score:.2f}", SPEAKING.get(item.view, item.view), escape(item.like)
        )
    console.print()
    console.print(table)
    order = sorted(reliance.items(), key=lambda pair: -pair[1])
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in order)
    console.print(f"this person goes by: {shares}", markup=False)


def _train(
    settings: Settings, executor: str, data: Path | None, runs: Path, resume: bool, overwrite: bool, end: bool = True
) -> tuple[Any, dict[str, Any]]:
    """Prepare, train, and print the table and, at the `end`, the line of JSON; return the job and that line."""
    from tessera.deploy.cli.display import RunDisplay, show_result, summary
    from tessera.deploy.executors.run import make_job, run_job
    from tessera.deploy.provisioning.datasets import prepared_dataset
    from tessera.server.run_folder import require

    dataset = prepared_dataset(settings.data, data)
    if settings.strategy_spec.has_towers and not resume:
        from tessera.server.pretraining.fit_readers import ensure_towers

        ensure_towers(dataset, settings, console.print)
    if resume:
        require(runs / settings.name, resume)  # before the lock makes a folder
    with hold_folder(runs / settings.name):
        job = make_job(settings, dataset, runs / settings.name, resume, overwrite)
        with RunDisplay(settings, console) as display:
            try:
                result = run_job(job, executor, display.report)
            except KeyboardInterrupt:
                console.print("stopped; go on with --resume")
                raise
    show_result(console, result, settings, runs / settings.name)
    figures = summary(result)
    if end:
        print(json.dumps(figures))
    return job, figures


def main() -> None:
    """Run the command; what a user can do something about is printed as one message, with exit code 1."""
    quieten()
    try:
        _add_groups()
        app()
    except TesseraError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)


def _add_groups() -> None:
    """Attach the other commands; each group is a file of its own. `doctor` alone can do without the packages they need."""
    from tessera.deploy.cli import doctor as cli_doctor

    app.command("doctor", epilog=cli_doctor.EPILOG)(cli_doctor.doctor)
    if sys.argv[1:2] == ["doctor"]:
        return
    try:
        from tessera.deploy.cli import data as cli_data
        from tessera.deploy.cli import federate as cli_federate
        from tessera.deploy.cli import towers as cli_towers
    except (ImportError, OSError) as error:  # OSError: a library that torch is linked to is missing
        raise RunError(f"this installation is not complete ({error}): ask `tessera doctor`") from error

    app.add_typer(cli_data.app, name="data")
    app.add_typer(cli_federate.app, name="federate")
    app.add_typer(cli_towers.app, name="towers")
