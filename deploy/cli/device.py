"""The commands `tessera device ...`: what a device answers, and what it has answered, for the person whose device it is."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tessera.client.device_folder import POLICY
from tessera.client.owner.known_keys import KnownKeys, changing_keys, read_keys, write_keys
from tessera.client.owner.ledger import Entry, Ledger
from tessera.client.owner.policy import Policy, changed, read_policy, write_policy
from tessera.common.data.folder_kinds import require_device
from tessera.common.errors import ConfigError
from tessera.deploy.api.tables import print_table
from tessera.deploy.cli.person.encryption import app as encryption
from tessera.deploy.cli.person.model import app as model
from tessera.deploy.cli.person.page import app as page
from tessera.deploy.cli.person.people import app as people
from tessera.deploy.cli.person.server import app as server
from tessera.deploy.cli.train import Changes

if TYPE_CHECKING:
    from tessera.client.owner.forecast import Expected

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Say what a device answers, and read what it has answered."
)
policy = typer.Typer(no_args_is_help=True, help="Show, change and check what a device answers: its policy.yaml.")
app.add_typer(policy, name="policy")
keys = typer.Typer(
    no_args_is_help=True, help="See which other devices' keys this device has seen, and which it takes to be real."
)
app.add_typer(keys, name="keys")
app.add_typer(server, name="server")
app.add_typer(people)
app.add_typer(model)
app.add_typer(encryption)
app.add_typer(page)
console = Console(highlight=False)
DataDir = Annotated[Path, typer.Option(help="The device's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@policy.command(epilog="Example: tessera device policy show --data-dir DEVICE")
def show(data_dir: DataDir, as_json: Json = False) -> None:
    """Print the policy, each line with what it means."""
    own = read_policy(require_device(data_dir))
    if as_json:
        typer.echo(json.dumps(own.model_dump(mode="json")))
        return
    table = Table("", "", "", box=None, show_header=False)
    for name, field in Policy.model_fields.items():
        value = own.model_dump(mode="json")[name]
        table.add_row(
            name, escape(", ".join(value) if isinstance(value, list) else str(value)), field.description or ""
        )
    print_table(console, table)


@policy.command("set", epilog="Example: tessera device policy set secure=required people=50 --data-dir DEVICE")
def set_(changes: Annotated[list[str], typer.Argument(metavar="KEY=VALUE...")], data_dir: DataDir) -> None:
    """Change lines of the policy; the next message is answered by it."""
    own = read_policy(require_device(data_dir))
    for change in changes:
        own = changed(own, change)
    write_policy(data_dir, own)
    typer.echo(f"{data_dir / POLICY} is written")


@policy.command(epilog="Example: tessera device policy check benchmarks/demo.yaml --data-dir DEVICE")
def check(
    data_dir: DataDir,
    config: Annotated[Path | None, typer.Argument(help="Settings of a run, YAML.", show_default=False)] = None,
    change: Changes = None,
    as_json: Json = False,
) -> None:
    """Look for mistakes in the policy, which would refuse everything; each wrong key is named with the nearest known one.

    With the settings CONFIG of a run: say what the policy would refuse of it, and why. The exit code is 1 where it refuses
    anything. Secure sums are taken to be of enough people and devices: that is seen when a group comes.
    """
    own = read_policy(require_device(data_dir))
    expected = [] if config is None else _forecast(data_dir, own, config, change or ())
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in expected]))
    elif config is None:
        typer.echo(f"{data_dir / POLICY} is in order")
    for one in [] if as_json else expected:
        where = f"in secure sums over {own.people} people or more" if one.masked else "in no secure sum"
        reasons = "; ".join(f"{reason} ({kind})" for kind, reason in one.refused)
        console.print(
            f"{one.kind}, {where}: {escape(f'refused, {reasons}') if reasons else 'answered'}", soft_wrap=True
        )
    if any(one.refused for one in expected):
        raise typer.Exit(1)


def _forecast(folder: Path, own: Policy, config: Path, changes: Sequence[str]) -> list["Expected"]:
    """What a policy makes of a run over gRPC, on this device."""
    from tessera.client.owner.forecast import forecast
    from tessera.client.owner.rules import Own
    from tessera.client.recommendation import RecommendationClient
    from tessera.common.config.loading import load_settings

    settings = load_settings(config, "grpc", changes)
    device = RecommendationClient(folder)
    return list(
        forecast(own, settings, lambda task: Own(1, is_sum=False) if settings.asks_questions else device.own(task))
    )


@app.command(epilog="Example: tessera device ledger --data-dir DEVICE --run demo-1a2b3c4d")
def ledger(
    data_dir: DataDir,
    run: Annotated[str, typer.Option(help="Only what was answered in this run.", show_default=False)] = "",
    as_json: Json = False,
) -> None:
    """Print what the device answered and refused: when, to which run, in what sum, with what noise, and epsilon."""
    entries, damaged = Ledger(require_device(data_dir)).entries()
    entries = [entry for entry in entries if run in ("", entry.run)]
    if as_json:
        for entry in entries:
            typer.echo(entry.model_dump_json())
    else:
        _print(entries)
    if damaged:
        numbers = ", ".join(map(str, damaged))
        typer.echo(f"lines that cannot be read, cut off when the device was killed: {numbers}", err=True)


@keys.command("list", epilog="Example: tessera device keys list --data-dir DEVICE")
def list_keys(data_dir: DataDir, as_json: Json = False) -> None:
    """Print the keys that groups of secure sums had, as `tessera federate list` names them, and who says that they are real."""
    known = read_keys(require_device(data_dir))
    if as_json:
        typer.echo(known.model_dump_json())
        return
    table = Table("key", "first seen", "admitted by", box=None, pad_edge=False)
    table.columns[0].no_wrap = table.columns[1].no_wrap = True
    for name, key in sorted(known.keys.items(), key=lambda one: (one[1].first_seen, one[0])):
        table.add_row(name, key.first_seen, key.admitted or "nobody")
    print_table(console, table)
    if known.serial:
        console.print(f"The latest list that {known.operator} signed is number {known.serial}.", soft_wrap=True)


@keys.command(epilog="Example: tessera device keys admit SHA256:... --data-dir DEVICE")
def admit(
    data_dir: DataDir,
    names: Annotated[list[str] | None, typer.Argument(metavar="FINGERPRINT...")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All keys that were seen so far.")] = False,
) -> None:
    """Take keys to be those of real devices, once you know whose they are: a group of theirs is answered from now on."""
    with changing_keys(require_device(data_dir)):
        known = read_keys(data_dir)
        chosen = _chosen(known, list(known.keys) if everything else names or [])
        write_keys(data_dir, known.with_keys(chosen, "owner"))
    typer.echo(f"{len(chosen)} admitted; {len(known.keys)} are known")


@keys.command(epilog="Example: tessera device keys drop SHA256:... --data-dir DEVICE")
def drop(data_dir: DataDir, names: Annotated[list[str], typer.Argument(metavar="FINGERPRINT...")]) -> None:
    """Take keys to be real no longer, as of a device that was lost."""
    with changing_keys(require_device(data_dir)):
        known = read_keys(data_dir)
        chosen = _chosen(known, names)
        write_keys(data_dir, known.without(chosen))
    typer.echo(f"{len(chosen)} no longer admitted")


def _chosen(known: KnownKeys, names: list[str]) -> list[str]:
    """The keys that are named. Raises `ConfigError` where there is none, or a name is of none that was seen."""
    if not names:
        raise ConfigError("keys: name fingerprints that `tessera device keys list` shows")
    if strange := [name for name in names if name not in known.keys]:
        raise ConfigError(f"keys: {strange[0]} was never seen here; `tessera device keys list` shows those that were")
    return names


def _print(entries: list[Entry]) -> None:
    table = Table("when", "run", "round", "what", "a sum of", "noise", "epsilon so far", "bytes", box=SIMPLE_HEAD)
    for entry in entries:
        when = f"{datetime.fromtimestamp(entry.time, UTC):%Y-%m-%d %H:%M:%SZ}"
        what = f"{entry.kind}: refused, {entry.reason}" if entry.refused else entry.kind
        table.add_row(
            when,
            escape(entry.run),
            str(entry.round),
            escape(what),
            _sum(entry),
            _noise(entry),
            "" if entry.refused else _epsilon(entry),
            str(entry.bytes),
        )
    print_table(console, table)
    answered = [entry for entry in entries if not entry.refused]
    masked, exact = sum(entry.masked for entry in answered), sum(entry.exact for entry in answered)
    total, refused = sum(entry.bytes for entry in answered), len(entries) - len(answered)
    console.print(
        f"{len(answered)} answers, {masked} of them in secure sums and {exact} exact outside them; {refused} refused; "
        f"{total} bytes sent",
        soft_wrap=True,
    )


def _sum(entry: Entry) -> str:
    devices = f" on {entry.devices} devices" if entry.masked else " here"
    return "" if entry.refused else f"{entry.people} people{devices}"


def _noise(entry: Entry) -> str:
    if entry.refused:
        return ""
    return "exact" if entry.noise is None else f"{entry.noise:g} x clip {entry.clip:g}"


def _epsilon(entry: Entry) -> str:
    """Of all training so far; what is exact in secure sums is not in it."""
    return "unbounded" if entry.epsilon is None else f"{entry.epsilon:.3g} at {entry.delta:g}"
