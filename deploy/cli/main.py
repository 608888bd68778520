"""Lists the commands of `tessera`, and imports the one that is called: `--help` need not wait for torch."""

import logging
import os
import sys
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated, NamedTuple

import click
import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from tessera.common.errors import RunError, TesseraError
from tessera.common.utils.encryption import seam
from tessera.common.utils.logs import log_to_terminal
from tessera.deploy.environment import quieten

ENTRY_POINTS = "tessera.commands"
"""Where an installed package names commands of its own: `NAME = "MODULE:APP"`, APP a `typer.Typer`. `GROUP.NAME` adds one to
a group of ours. Their modules are imported when the commands are listed: import what a command needs inside it."""


class Listed(NamedTuple):
    """A command of ours: where its `typer.Typer` is, and its help in a line."""

    target: str
    help: str


COMMANDS = {
    "init": Listed(
        "tessera.deploy.cli.datasets.init:app",
        "Write settings that suit a dataset, NAME.yaml, and a grid to find better ones, NAME-grid.yaml; each line says why.",
    ),
    "train": Listed(
        "tessera.deploy.cli.train:app",
        "Train a federation, print the table with its baselines, and end with one line of JSON.",
    ),
    "recommend": Listed(
        "tessera.deploy.cli.recommend:app",
        "Recommend items to a person from their device's own files; nothing is asked of a server.",
    ),
    "device": Listed("tessera.deploy.cli.device:app", "Say what a device answers, and read what it has answered."),
    "data": Listed("tessera.deploy.cli.data:app", "Convert raw data into datasets, describe them, share them out."),
    "federate": Listed(
        "tessera.deploy.cli.federate:app",
        "Run a federation on separate machines: server, devices, certificates and keys.",
    ),
    "towers": Listed(
        "tessera.deploy.cli.towers:app", "Fit the encoders that devices adapt, one for each device class."
    ),
    "runs": Listed(
        "tessera.deploy.cli.runs.commands:app",
        "Look at runs: list, show, compare and follow them, or open their page.",
    ),
    "config": Listed("tessera.deploy.cli.config:app", "Show the settings of a run, and describe them to editors."),
    "doctor": Listed(
        "tessera.deploy.cli.doctor:app",
        "Check this machine, and a server's folder, a device's and the way to a server; say what to do.",
    ),
}
CLICK_SUGGESTS = hasattr(click.exceptions, "NoSuchCommand")
"""Whether this version of click names the command that was probably meant."""


class LazyGroup(TyperGroup):
    """A group whose help lists commands without importing them, and which imports the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours, in the order of their use, then those of installed packages."""
        return [*COMMANDS, *sorted(name for name in offered() if "." not in name and name not in COMMANDS)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by name; one of ours as its name and help only, unless it is being called."""
        if cmd_name in COMMANDS:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name].help)
        return outside(cmd_name, offered()[cmd_name]) if cmd_name in offered() else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that is called. Of one that there is not, the nearest is named."""
        self.suggest_commands = not CLICK_SUGGESTS
        if self.get_command(ctx, args[0]) is None:
            self.commands = {name: TyperCommand(name) for name in self.list_commands(ctx)}
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name, COMMANDS[name].target) if name in COMMANDS else command, rest


@cache
def offered() -> dict[str, list[EntryPoint]]:
    """What installed packages, our own `benchmarks` among them, offer as commands, by name: all are looked through once."""
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=ENTRY_POINTS):
        found.setdefault(point.name, []).append(point)
    return found


def load(name: str, target: str) -> click.Command:
    """Import our command `name` from "MODULE:APP", with what others add to it. Raises `RunError` where something is missing."""
    module, _, attribute = target.partition(":")
    try:
        command = typer.main.get_command(getattr(import_module(module), attribute))
    except (ImportError, OSError) as error:
        raise incomplete(error) from error
    command.name = name
    _suggest_once(command)
    if isinstance(command, click.Group):
        for addition in sorted(one for one in offered() if one.startswith(f"{name}.")):
            short = addition.removeprefix(f"{name}.")
            if short not in command.commands:
                command.add_command(outside(short, offered()[addition]))
    return command


def _suggest_once(command: click.Command) -> None:
    """Leave it to click to name the command that was probably meant, where it does: Typer would say it a second time."""
    if isinstance(command, TyperGroup):
        command.suggest_commands = not CLICK_SUGGESTS
        for below in command.commands.values():
            _suggest_once(below)


def outside(name: str, found: list[EntryPoint]) -> click.Command:
    """The command that another package offers; where it cannot be loaded, one that says so, in the help and when called."""
    packages = " and ".join(f"the package {point.dist.name}" if point.dist else point.value for point in found)
    try:
        if len(found) == 1:
            command = typer.main.get_command(found[0].load())
            command.name = name
            return command
        why = f"is offered by {packages}: uninstall one"
    except Exception as error:  # whatever a stranger's module does when it is imported
        why = f"of {packages} cannot be loaded: {error}"
    message = f"the command {name!r} {why}"

    def refuse() -> None:
        raise RunError(message)

    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    return TyperCommand(name, callback=refuse, help=f"Not to be used: {message}", context_settings=settings)


def incomplete(error: Exception) -> RunError:
    """What to say when a package, or a library that one is linked to, cannot be loaded."""
    return RunError(f"this installation is not complete ({error}): ask `tessera doctor`")


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, pretty_exceptions_show_locals=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tessera {version('tessera')}")
        raise typer.Exit


def _without_colours(wanted: bool) -> None:
    if wanted:
        os.environ["NO_COLOR"] = "1"


@app.callback()
def options(
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Say more of what is done; twice: everything.")
    ] = 0,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but results and errors.")] = False,
    no_color: Annotated[
        bool,
        typer.Option(
            "--no-color",
            callback=_without_colours,
            is_eager=True,
            help="No colours, as with NO_COLOR in the environment.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train recommenders that understand images and text on people's own devices, where their histories stay.

    Every command has a --help of its own, with an example.
    """
    log_to_terminal(logging.ERROR if quiet else logging.WARNING - 10 * min(verbose, 2))


def _ask_passphrase(folder: Path) -> str:
    """Ask for the passphrase of an encrypted folder; processes that this one starts find it in their environment."""
    found = str(typer.prompt(f"Passphrase of {folder}", hide_input=True, err=True))
    os.environ[seam.PASSPHRASE] = found
    return found


def main() -> None:
    """Run the command; what a user can do something about is printed as one message, with exit code 1."""
    quieten()
    if sys.stdin.isatty():
        seam.ask = _ask_passphrase
    try:
        try:
            app()
        except (ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # not a library that could not be linked to
                raise
            raise incomplete(error) from error
    except TesseraError as error:
        Console(stderr=True, highlight=False).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        logging.getLogger("tessera").debug("where it happened", exc_info=error)
        sys.exit(1)
