"""The commands about a person on a device: who is there, what they had, what was learnt, their archive, and forgetting them."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.client.people.device import Device, by_share
from tessera.common.errors import DataError
from tessera.common.utils.text.wording import number_of
from tessera.deploy.api.tables import print_table

app = typer.Typer(add_completion=False)
console = Console(highlight=False)
DataDir = Annotated[Path, typer.Option(help="The device's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
User = Annotated[str, typer.Argument(help="The person.")]
Item = Annotated[str, typer.Argument(help="An item: its id, its title, or a part that only one title has.")]


@app.command(epilog="Example: tessera device people --data-dir DEVICE")
def people(data_dir: DataDir, as_json: Json = False) -> None:
    """List the people on a device, and how many events each has."""
    found = Device.open(data_dir).people()
    if as_json:
        typer.echo(json.dumps([asdict(person) for person in found]))
        return
    table = Table("person", "events", box=SIMPLE_HEAD)
    for person in found:
        table.add_row(escape(person.user), str(person.events))
    print_table(console, table)


@app.command("add-person", epilog="Example: tessera device add-person zoe --data-dir DEVICE")
def add_person(user: User, data_dir: DataDir, as_json: Json = False) -> None:
    """Take in a person who has no event yet."""
    Device.open(data_dir).add_person(user)
    _said({"user": user}, f"{user} is on {data_dir}", as_json)


@app.command("add-event", epilog='Example: tessera device add-event zoe "Toy Story" --data-dir DEVICE')
def add_event(
    user: User,
    item: Item,
    data_dir: DataDir,
    at: Annotated[
        int | None, typer.Option(help="When, in the unit of the data; now by default.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Note that a person had an item; the next recommendations know it, and the next round of training."""
    event = Device.open(data_dir).add_event(user, item, at)
    said = {"user": user, "item": event.item, "title": event.title, "timestamp": event.time}
    _said(said, f"{user} had {event.title} ({event.item})", as_json)


@app.command("import-events", epilog="Example: tessera device import-events watched.csv --user zoe --data-dir DEVICE")
def import_events(
    file: Annotated[Path, typer.Argument(help="A CSV with the columns user, item and, if there are times, timestamp.")],
    data_dir: DataDir,
    user: Annotated[
        str | None, typer.Option(help="Whose they all are; then no column user is needed.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Add many events at once, all or none; what somebody has already is passed over."""
    added = Device.open(data_dir).import_events(file, user)
    _said({"file": str(file), "added": added}, f"{number_of(added, 'event')} of {file} added, which were new", as_json)


@app.command(epilog='Example: tessera device correct zoe "Toy Story" --instead "Toy Story 2" --data-dir DEVICE')
def correct(
    user: User,
    item: Item,
    data_dir: DataDir,
    instead: Annotated[
        str | None, typer.Option(help="What it was; without it the event is taken back.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Take an event back, or say what it was of. What was added into past sums stays there."""
    Device.open(data_dir).correct(user, item, instead)
    said = f"{user} had {instead}, not {item}" if instead else f"{user} did not have {item}"
    _said({"user": user, "item": item, "instead": instead}, said, as_json)


@app.command(epilog='Example: tessera device prefer zoe --lean text=1 --hide "Toy Story" --data-dir DEVICE')
def prefer(
    user: User,
    data_dir: DataDir,
    lean: Annotated[
        list[str] | None,
        typer.Option(metavar="VIEW=X", help="Let a view count e^X times as much; 0 as was learnt.", show_default=False),
    ] = None,
    hide: Annotated[list[str] | None, typer.Option(help="An item never to be shown again.", show_default=False)] = None,
    unhide: Annotated[list[str] | None, typer.Option(help="One to be shown again.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Show or change what a person asks of recommendations. No training reads it, and it does not leave the device."""
    device = Device.open(data_dir)
    for one in lean or ():
        view, _, offset = one.partition("=")
        try:
            value = float(offset)
        except ValueError:
            raise DataError(f"--lean {one}: write VIEW=X with a number, such as text=1") from None
        device.lean(user, view, value)
    for items, hidden in ((hide, True), (unhide, False)):
        for item in items or ():
            device.hide(user, item, hidden)
    wanted = device.preferences(user)
    leaning = ", ".join(f"{view} {offset:+g}" for view, offset in wanted.leaning.items()) or "as was learnt"
    said = f"views count {leaning}; not to be shown: {', '.join(wanted.hidden) or 'nothing'}"
    _said(wanted.model_dump(mode="json"), said, as_json)


@app.command(epilog="Example: tessera device refresh zoe --data-dir DEVICE")
def refresh(
    user: User,
    data_dir: DataDir,
    steps: Annotated[int | None, typer.Option(min=1, help="Local steps; 10 by default.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Teach a person's own state what they did since the last round, by a few local steps; nothing leaves the device.

    It counts for recommendations until these come from another round.
    """
    Device.open(data_dir).refresh(user, steps)
    _said({"user": user}, f"what the device knows of {user} has taken in what they did", as_json)


@app.command(epilog="Example: tessera device show zoe --data-dir DEVICE")
def show(user: User, data_dir: DataDir, as_json: Json = False) -> None:
    """Show all that a device knows of a person: events, what they go by and since when, and what left the device."""
    found = Device.open(data_dir).show(user)
    if as_json:
        typer.echo(found.model_dump_json())
        return
    title = f"{escape(user)}: {number_of(len(found.events), 'event')}"
    table = Table("had", "id", "when", title=title, box=SIMPLE_HEAD)
    for event in found.events:
        table.add_row(escape(event.title), escape(event.item), str(event.time))
    print_table(console, table)
    for run in found.runs:
        shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in by_share(run.reliance))
        weights = ", ".join(f"{name} {weight:.2f}" for name, weight in run.weights.items())
        console.print(f"run {run.run}, as of round {run.round}", markup=False)
        console.print(f"  goes by: {shares}", markup=False, soft_wrap=True)
        console.print(f"  the router weighs: {weights}", markup=False, soft_wrap=True)
        if run.rounds:
            since = ""
            if run.since_round is not None and run.since is not None:
                since = f", since round {run.since_round} ({datetime.fromtimestamp(run.since, UTC):%Y-%m-%d})"
            console.print(f"  has trained in {number_of(run.rounds, 'round')}{since}", markup=False)
        if not run.trained:
            console.print("  has not trained yet: this is from the history alone", markup=False)
    left = found.left
    console.print(
        f"what left this device, for all on it: {left.answers} answers, {left.masked} of them in secure sums and {left.exact} "
        f"exact outside them, {left.bytes} bytes; {left.refused} asks were refused",
        soft_wrap=True,
    )
    console.print("private files: " + ("in clear" if found.encryption == "none" else f"encrypted, {found.encryption}"))


@app.command("export", epilog="Example: tessera device export zoe zoe.zip --data-dir DEVICE")
def export(
    user: User,
    file: Annotated[Path, typer.Argument(help="The archive to write.")],
    data_dir: DataDir,
    as_json: Json = False,
) -> None:
    """Write all that the device knows of a person to an open archive, which another device can import."""
    manifest = Device.open(data_dir).export(user, file)
    learnt = f"what {number_of(len(manifest.runs), 'run')} learnt of them"
    said = f"{file} holds the events of {user}, and {learnt}: keep it to yourself"
    _said(manifest.model_dump(), said, as_json)


@app.command("import", epilog="Example: tessera device import zoe.zip --data-dir DEVICE")
def import_(
    file: Annotated[Path, typer.Argument(help="An archive of `tessera device export`.")],
    data_dir: DataDir,
    as_json: Json = False,
) -> None:
    """Take in a person from an archive: their events, and what the runs learnt that this device takes part in."""
    found = Device.open(data_dir).import_(file)
    left_out = "".join(f"; run {run} is left out, {why}" for run, why in found.left_out.items())
    told = {"user": found.user, "events": found.events, "runs": found.runs, "left_out": found.left_out}
    brought = f"{number_of(found.events, 'event')} and {number_of(len(found.runs), 'run')}"
    _said(told, f"{found.user} is on {data_dir} with {brought}{left_out}", as_json)


@app.command(epilog="Example: tessera device forget zoe --yes --data-dir DEVICE")
def forget(
    user: User,
    data_dir: DataDir,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove a person from all files of the device. What was added into past sums cannot be taken out of these."""
    device = Device.open(data_dir)
    if not yes:
        typer.confirm(f"Remove everything about {user} from {data_dir}?", abort=True)
    device.forget(user)
    said = f"nothing of {user} is left on {data_dir}; what was added into past sums cannot be taken out of these"
    _said({"forgotten": user}, said, as_json)


def _said(content: dict[str, object], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(content) if as_json else text)
