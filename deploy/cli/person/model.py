"""The command `tessera device pull`: takes the model that a server publishes, and takes part in nothing."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from tessera.common.errors import RunError

app = typer.Typer(add_completion=False)
EPILOG = "Example: tessera device pull --server server.example:9094 --ca ca.crt --data-dir DEVICE"


@app.command(epilog=EPILOG)
def pull(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server, at the port where it publishes.")],
    ca: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The ca.crt of the server.")],
    data_dir: Annotated[Path, typer.Option(help="The device's folder; it is made where there is none.")],
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Take small pictures of the items too, where the server publishes any.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Take the model that a server publishes: people get recommendations by it, and nothing leaves the device.

    Only what the device lacks comes, and a pull that was cut goes on where it was. The server asks nobody who they are.
    """
    from tessera.client.published.pull import pull as pull_model
    from tessera.deploy.federation.certificates import check_server
    from tessera.deploy.federation.processes import unproxied
    from tessera.deploy.federation.supernode import parse_address

    os.environ.update(unproxied())
    try:
        check_server(*parse_address(server), ca)
    except OSError as error:
        raise RunError(
            f"pull: {server} does not answer ({error}); is it up, and is that the port it publishes at?"
        ) from None
    pulled = pull_model(data_dir, server, ca, pictures)
    model = pulled.model
    if as_json:
        facts = {"run": model.run, "round": model.round, "time": model.time, "items": model.catalogue.n_items}
        typer.echo(
            json.dumps(
                facts | {"catalogue": model.catalogue.sha256, "bytes": pulled.bytes, "pictures": pulled.pictures}
            )
        )
        return
    typer.echo(f"{data_dir} has the model of round {model.round} of {model.run}, with {model.catalogue.n_items} items")
    if pictures:
        none = "" if model.pictures else "; the server publishes none"
        typer.echo(f"{pulled.pictures} items have a small picture{none}")
    typer.echo(f"{pulled.bytes} bytes came" if pulled.bytes else "it had it already; no byte came")
