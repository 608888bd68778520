"""The commands `tessera federate status` and `stop`: how a server's devices and runs stand, and the end of a run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tessera.deploy.api.tables import print_table
from tessera.deploy.cli.runs import completion

app = typer.Typer(add_completion=False)
ServerDir = Annotated[Path, typer.Option("--dir", help="The server's folder, made by `certificates`.")]


@app.command(epilog="Example: tessera federate status --dir server")
def status(
    folder: ServerDir,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which devices are online and since when, how the runs stand, and which model is published.

    On the server's machine. It is all about devices and sums: nothing that is kept here is of one person.
    """
    from tessera.deploy.api.display import runs_table
    from tessera.deploy.api.federation import Federation

    found = Federation(folder).overview()
    if as_json:
        print(json.dumps(found.facts()))
        return
    console = Console(highlight=False)
    online = [device for device in found.devices if device.state == "online"]
    answers = "" if found.answers else "; the server does not answer"
    console.print(f"{len(online)} of {len(found.devices)} devices are online{answers}")
    for device in online:
        console.print(f"  {device.number} since {device.since}", markup=False)
    if found.runs:
        print_table(console, runs_table(found.runs))
    for run in found.runs:
        if run.reason:
            console.print(f"{run.name}: {run.reason}", markup=False, soft_wrap=True)
    if model := found.published:
        told = f"published: round {model.round} of {model.run}, {model.time}, with {model.catalogue.n_items} items"
        console.print(f"{told} ({model.catalogue.sha256[:12]})", markup=False, soft_wrap=True)
    else:
        console.print("no model is published")


@app.command(epilog="Example: tessera federate page --dir server")
def page(
    folder: ServerDir,
    port: Annotated[int, typer.Option(min=0, max=65535, help="A port of this machine; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Show devices, runs with their curves as they come, and what went wrong, in a browser on the server's machine.

    The address has a key in it, and nobody else gets in. Nothing of a person is on it. Ctrl-C ends it.
    """
    from tessera.deploy.pages.operator.app import OperatorPage, ServerFolder
    from tessera.deploy.pages.serving import say, serve

    serve(OperatorPage(ServerFolder(folder)).app(), port, say(f"the page of {folder}", browser))


@app.command(epilog="Example: tessera federate stop demo --dir server")
def stop(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="The run's name, as `status` shows it.", autocompletion=completion.submitted
        ),
    ],
    folder: ServerDir,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long it has to end its round; 0 stops it at once.")
    ] = 60,
) -> None:
    """Stop a run once the round that it is in is over, on the server's machine. `submit --resume` goes on with it.

    A round that takes longer than --wait is lost, with those since the last checkpoint: the run does them again.
    """
    from tessera.deploy.api.federation import Federation

    whole = Federation(folder).stop(run, wait)
    how = "with all its rounds" if whole else "in a round, which is lost"
    typer.echo(f"{run} is stopped {how}; `tessera federate submit ... --resume` goes on with it")
