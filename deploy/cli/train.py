"""The command `tessera train`: trains a federation on this machine and prints how good its recommendations are."""

import json
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tessera.deploy.cli.runs import completion
from tessera.deploy.environment import NodeKind

if TYPE_CHECKING:
    from tessera.common.config.settings import Settings
    from tessera.deploy.api.result import Result

app = typer.Typer(add_completion=False)
console = Console(highlight=False)
TRIAL = "these devices lie on one machine and answer for any number of people; by default a real one wants 64 in a sum"
EPILOG = "Example: tessera train benchmarks/demo.yaml --executor grpc --nodes 3 --set rounds=5"


class ExecutorName(StrEnum):
    """Ways to run a federation."""

    inline = "inline"
    ray = "ray"
    grpc = "grpc"


Config = Annotated[Path, typer.Argument(help="Settings of the run, YAML.")]
Data = Annotated[
    Path | None, typer.Option(help="The dataset's folder, or the one that holds it; TESSERA_DATA by default.")
]
Nodes = Annotated[
    str | None,
    typer.Option(metavar="N", help="Number of nodes, or auto: one for each processor. The config's by default."),
]
Runs = Annotated[Path, typer.Option(help="Folder the runs lie in.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting; may be repeated.",
        autocompletion=completion.settings,
    ),
]
Node = Annotated[
    NodeKind, typer.Option(envvar="TESSERA_NODE", help="Tessera's node, which answers at once, or Flower's SuperNode.")
]
Continue = Annotated[
    str | None,
    typer.Option(
        "--continue",
        metavar="RUN",
        autocompletion=completion.runs,
        help="Begin with the best round of a run, by its folder or its name: with a later version of the catalogue, other "
        "people, other settings where they fit.",
        show_default=False,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or killed.")]


@app.command(epilog=EPILOG)
def train(
    config: Config,
    executor: Annotated[
        ExecutorName, typer.Option(help="One process, Ray workers, or separate processes over gRPC.")
    ] = ExecutorName.inline,
    data: Data = None,
    nodes: Nodes = None,
    node: Node = NodeKind.tessera,
    runs: Runs = Path("runs"),
    change: Changes = None,
    resume: Resume = False,
    continues: Continue = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")] = False,
) -> None:
    """Train a federation, print the table with its baselines, and end with one line of JSON."""
    from tessera.deploy.api.settings import load_config

    changes = [*(change or ()), *([f"federation.nodes={nodes}"] if nodes else [])]
    settings = load_config(config, *changes, executor=executor.value)
    result = train_and_show(settings, executor.value, data, runs, resume, overwrite, node, continues)
    print(json.dumps(result.figures))


def train_and_show(
    settings: "Settings",
    executor: str,
    data: Path | None,
    runs: Path,
    resume: bool = False,
    overwrite: bool = False,
    node: NodeKind = NodeKind.tessera,
    continues: str | None = None,
) -> "Result":
    """Train, showing how far it is, and print the table."""
    from tessera.deploy.api.display import show_result
    from tessera.deploy.api.training import train

    if executor == "grpc" and not resume:
        console.print(TRIAL, soft_wrap=True)
    how = partial(train, executor=executor, node=node, progress=console)
    try:
        result = how(settings, data, runs=runs, resume=resume, overwrite=overwrite, continues=continues)
    except KeyboardInterrupt:
        console.print("stopped; go on with --resume")
        raise
    show_result(console, result.record, settings, result.path)
    return result
