"""The commands `tessera device server ...`: which server a device goes by, and whether it told two devices the same."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.client.owner.statements import admit as admit_key
from tessera.client.owner.statements import read_key, read_statements
from tessera.common.data.folder_kinds import require_device
from tessera.common.protocol.signed.keys import key_name
from tessera.common.protocol.signed.statements import Statement, lies
from tessera.deploy.api.tables import print_table

app = typer.Typer(
    no_args_is_help=True, help="See which server's key this device goes by, and what the server signed of its asks."
)
console = Console(highlight=False)
DataDir = Annotated[Path, typer.Option(help="The device's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: tessera device server key --data-dir DEVICE")
def key(data_dir: DataDir, as_json: Json = False) -> None:
    """Print the key that the server signs with. Compare it with the one that `tessera federate server` prints."""
    known = read_key(require_device(data_dir))
    names = [key_name(one) if one else "" for one in (known.key, known.offered)]
    if as_json:
        said = {"key": names[0], "since": known.since, "admitted": known.admitted, "refused": names[1]}
        typer.echo(json.dumps(said))
        return
    typer.echo(
        f"{names[0]}, since {known.since}, by {known.admitted}" if names[0] else "no server has signed anything yet"
    )
    if names[1]:
        typer.echo(f"{names[1]} came later, and is refused")


@app.command(epilog="Example: tessera device server admit SHA256:... --data-dir DEVICE")
def admit(name: Annotated[str, typer.Argument(metavar="FINGERPRINT")], data_dir: DataDir) -> None:
    """Go by the key that came last and was refused, once you know from the server's operator that it is the server's."""
    admit_key(require_device(data_dir), name)
    typer.echo(f"{name} is the server's key from now on")


@app.command("list", epilog="Example: tessera device server list --run demo-1a2b3c4d --data-dir DEVICE")
def list_(
    data_dir: DataDir,
    run: Annotated[str, typer.Option(help="Only what was asked in this run.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Print what the server signed: when it asked what, and on which views."""
    statements = [one for one in read_statements(require_device(data_dir)) if run in ("", one.run)]
    if as_json:
        for one in statements:
            typer.echo(one.write())
        return
    table = Table("when", "run", "asked", "views", "signed by", box=None, pad_edge=False)
    for one in statements:
        asked = ", ".join(f"{kind} of round {round}" for kind, round, _ in one.asks)
        table.add_row(_when(one.sent), escape(one.run), escape(asked), one.tensors[:8], key_name(one.key)[:15])
    print_table(console, table)


@app.command(epilog="Example: tessera device server compare other/statements.jsonl --data-dir DEVICE")
def compare(
    others: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Other devices' statements.jsonl, or folders.")
    ],
    data_dir: DataDir,
    as_json: Json = False,
) -> None:
    """Look whether a server told this device and others different things.

    What is printed is proof against whoever has the key: it signed both. The exit code is 1 where there is any. Files hold
    nothing of anybody but which runs a device took part in.
    """
    told = {path: read_statements(path) for path in (require_device(data_dir), *others)}
    holders: dict[Statement, str] = {}
    for path, statements in told.items():
        for one in statements:
            holders.setdefault(one, str(path))
    found = lies(list(holders))
    if as_json:
        pairs = [
            {"why": why, "one": json.loads(one.write()), "other": json.loads(two.write())} for one, two, why in found
        ]
        typer.echo(json.dumps(pairs))
    for one, other, why in [] if as_json else found:
        console.print(f"run {escape(one.run)}, {why}; both are signed by {key_name(one.key)}:", soft_wrap=True)
        for statement in (one, other):
            views = f"views {statement.tensors[:8]}" if statement.tensors else "no views"
            console.print(f"    {_when(statement.sent)}  {views}  in {escape(holders[statement])}", soft_wrap=True)
    if found:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"{_common(list(told.values()))} asks came to more than one of them, and all are the same to each")


def _common(told: list[list[Statement]]) -> int:
    seen: dict[Statement, int] = {}
    for statements in told:
        for one in statements:
            seen[one] = seen.get(one, 0) + 1
    return sum(times > 1 for times in seen.values())


def _when(moment: int) -> str:
    return f"{datetime.fromtimestamp(moment / 1e6, UTC):%Y-%m-%d %H:%M:%SZ}"
