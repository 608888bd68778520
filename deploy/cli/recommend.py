"""The command `tessera recommend`: recommends items to a person from their own device's files, with reasons."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tessera.client.people.device import BASES, REASONS, Device, Recommendations, by_share
from tessera.deploy.api.tables import print_table

app = typer.Typer(add_completion=False)
console = Console(highlight=False)
KeyFile = Annotated[
    Path | None,
    typer.Option(help="What an encrypted folder opens with; TESSERA_KEY_FILE by default.", show_default=False),
]
EPILOG = "Example: tessera recommend --data-dir runs/demo/devices/node-0 --user user-000 -k 10"


@app.command(epilog=EPILOG)
def recommend(
    data_dir: Annotated[Path, typer.Option(help="The device's folder.")],
    user: Annotated[str, typer.Option(help="Whom to recommend to.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    run: Annotated[str | None, typer.Option(help="Which run's state; the newest by default.")] = None,
    draw: Annotated[
        bool, typer.Option("--pictures", help="Draw the items' pictures, on a terminal with 256 colours or more.")
    ] = False,
    key_file: KeyFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items to a person from their device's own files; nothing is asked of a server."""
    device = Device.open(data_dir, run, key_file=key_file)
    found = device.recommend(user, k)
    pictures = {item.item: path.absolute() for item in found if (path := device.picture(item.item))}
    if as_json:
        items = [asdict(one) | ({"picture": str(pictures[one.item])} if one.item in pictures else {}) for one in found]
        typer.echo(json.dumps(found.to_json() | {"items": items}))
    else:
        show_recommendations(found, pictures, draw)


def show_recommendations(
    found: Recommendations, pictures: Mapping[str, Path] = MappingProxyType({}), draw: bool = False
) -> None:
    """Print a person's recommendations, each with the view that speaks for it and, on a terminal, a link to its picture by id,
    or the picture itself; and how far they go by each view."""
    from tessera.deploy.cli.person.pictures import drawn

    title = f"for {escape(found.user)}, from the device's own files as of round {found.round}"
    table = Table("", "item", "score", "because of", "as in", title=title, box=SIMPLE_HEAD)
    if draw:
        table.add_column("")
    for place, item in enumerate(found, 1):
        reason = REASONS.get(item.view, item.view)
        link = f"link {pictures[item.item].as_uri()}" if item.item in pictures else ""
        picture = (drawn(console, pictures.get(item.item)),) if draw else ()
        table.add_row(str(place), Text(item.title, link), f"{item.score:.2f}", reason, escape(item.like), *picture)
    console.print()
    print_table(console, table)
    if told := BASES[found.based_on]:
        console.print(told)
    if not found.reliance:
        return
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in by_share(found.reliance))
    console.print(f"this person goes by: {shares}", markup=False)
