"""The command `tessera device page`: the person's page, for a browser on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from tessera.client.people.device import Device

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: tessera device page --data-dir DEVICE")
def page(
    data_dir: Annotated[Path, typer.Option(help="The device's folder.")],
    pictures: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="The dataset's folder, for the items' pictures.", show_default=False
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="A port of this machine; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Show what is recommended and why, what they had and what left the device, in a browser on this machine.

    The address has a key in it, and nobody else gets in. Ctrl-C ends it.
    """
    from tessera.deploy.pages.person.app import PersonPage
    from tessera.deploy.pages.serving import say, serve

    serve(PersonPage(Device.open(data_dir), pictures).app(), port, say(f"the page of {data_dir}", browser))
