"""The command `tessera recommend`: recommends items to a person from their own device's files, with reasons."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from tessera.client.recommend import Personal

app = typer.Typer(add_completion=False)
console = Console(highlight=False)
REASONS = {"image": "its picture", "text": "its words", "id": "the crowd", "popularity": "many had it"}
"""What a view means to a person."""
BASES = {
    "history": "based on what this person had, not trained yet",
    "popularity": "based on what is popular: nothing else is known of this person yet",
}
"""What there is to say where recommendations do not come from training."""
EPILOG = "Example: tessera recommend --data-dir runs/demo/devices/node-0 --user user-000 -k 10"


@app.command(epilog=EPILOG)
def recommend(
    data_dir: Annotated[Path, typer.Option(help="The device's folder.")],
    user: Annotated[str, typer.Option(help="Whom to recommend to.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many items.")] = 10,
    run: Annotated[str | None, typer.Option(help="Which run's state; the newest by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items to a person from their device's own files; nothing is asked of a server."""
    from tessera.client.recommend import Personal

    personal = Personal.open(data_dir, run)
    if not as_json:
        show_recommendations(personal, user, k)
        return
    items, reliance = personal.recommend(user, k)
    facts = {"user": user, "run": personal.task.run, "round": personal.task.round, "based_on": personal.based_on(user)}
    typer.echo(json.dumps(facts | {"items": [asdict(item) for item in items], "reliance": reliance}))


def show_recommendations(personal: "Personal", user: str, k: int) -> None:
    """Print a person's recommendations, each with the view that speaks for it, and how far they go by each view."""
    items, reliance = personal.recommend(user, k)
    title = f"for {escape(user)}, from the device's own files as of round {personal.task.round}"
    table = Table("", "item", "score", "because of", "as in", title=title, box=SIMPLE_HEAD)
    for place, item in enumerate(items, 1):
        reason = REASONS.get(item.view, item.view)
        table.add_row(str(place), escape(item.title), f"{item.score:.2f}", reason, escape(item.like))
    console.print()
    console.print(table)
    if told := BASES.get(personal.based_on(user)):
        console.print(told)
    if not reliance:
        return
    order = sorted(reliance.items(), key=lambda pair: -pair[1])
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in order)
    console.print(f"this person goes by: {shares}", markup=False)
