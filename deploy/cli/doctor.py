"""The command `tessera doctor`: says what is wrong on this machine, and what to do about it."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from tessera.deploy.doctor import Finding, Level, examine

EPILOG = (
    "Examples: tessera doctor --dir SERVER   |   "
    "tessera doctor --data-dir DEVICE --server server.example:9092 --ca ca.crt"
)
COLOURS = {Level.ok: "green", Level.warning: "yellow", Level.problem: "bold red"}
app = typer.Typer(add_completion=False)
console = Console(highlight=False)


@app.command(epilog=EPILOG)
def doctor(
    folder: Annotated[Path | None, typer.Option("--dir", help="A server's folder to check.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="A device's folder to check.")] = None,
    server: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="A server to reach; it has to prove itself to --ca.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="The ca.crt of the server; the one in --dir by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead.")] = False,
) -> None:
    """Check this machine, and a server's folder, a device's and the way to a server; say what to do.

    Ends with exit code 1 when there is a problem. Nothing is changed.
    """
    ca = ca or (folder / "ca.crt" if folder else None)
    if server and ca is None:
        raise typer.BadParameter("--server needs --ca: without it no server can prove itself")
    counts: Counter[str] = Counter()
    found = []
    for finding in examine(folder, data_dir, server, ca):
        counts[finding.level] += 1
        found.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        print(
            json.dumps({level.value: counts[level] for level in Level} | {"findings": [asdict(one) for one in found]})
        )
    else:
        console.print(f"\n{counts[Level.problem]} problems, {counts[Level.warning]} warnings")
    raise typer.Exit(1 if counts[Level.problem] else 0)


def _show(finding: Finding) -> None:
    level = f"[{COLOURS[finding.level]}]{finding.level.value:8}[/]"
    console.print(f"{level} {finding.topic:12} {escape(finding.found)}", soft_wrap=True)
    if finding.remedy:
        console.print(f"{'':21} to do: {finding.remedy}", markup=False, soft_wrap=True)
