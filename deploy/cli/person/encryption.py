"""The commands about a device's folder as a whole: how it stands, and whether its private files are encrypted."""

import json
import os
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tessera.client.people.device import Device
from tessera.common.errors import ConfigError
from tessera.common.utils.atomic_files import PRIVATE, write_bytes
from tessera.common.utils.encryption.seam import PASSPHRASE
from tessera.common.utils.text.wording import number_of

app = typer.Typer(add_completion=False)
DataDir = Annotated[Path, typer.Option(help="The device's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KEY_BYTES = 32


@app.command(epilog="Example: tessera device status --data-dir DEVICE")
def status(data_dir: DataDir, as_json: Json = False) -> None:
    """Say how a device's folder stands: how many people are on it, which runs and model it knows, whether it is encrypted."""
    found = Device.open(data_dir).status()
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"{number_of(found.people, 'person', 'people')}, {number_of(found.events, 'event')} of theirs")
    typer.echo(f"runs: {', '.join(found.runs) or 'none yet'}; pulled model: {found.pulled or 'none'}")
    typer.echo(
        "private files: " + ("in clear" if found.encryption == "none" else f"encrypted with a {found.encryption}")
    )


@app.command(epilog="Example: tessera device encrypt --key-file ~/device.key --data-dir DEVICE")
def encrypt(
    data_dir: DataDir,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="With a passphrase: asked for, or that of TESSERA_PASSPHRASE.")
    ] = False,
    key_file: Annotated[
        Path | None, typer.Option(help="With a key in this file, which is made if need be.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Encrypt the private files of a device: events, private states, ledger, policy and keys.

    Items, pictures and views are public and stay clear, and exports are in clear too. Nothing opens the folder without the
    key: keep a copy of it, elsewhere. What the disk held in clear before may be found in its freed blocks. Killed half-way,
    run it again.
    """
    if passphrase == (key_file is not None):
        raise ConfigError("encrypt: pass --passphrase or --key-file FILE")
    device = Device.open(data_dir)
    if key_file is None:
        number = device.encrypt(passphrase=_new_passphrase(device))
    else:
        _require_elsewhere(key_file, data_dir)
        if not key_file.exists():
            write_bytes(key_file, secrets.token_bytes(KEY_BYTES), PRIVATE)
        number = device.encrypt(key_file=key_file)
    said = f"{number} private files of {data_dir} are encrypted; keep a copy of the {device.encryption} elsewhere"
    typer.echo(json.dumps({"encryption": device.encryption, "files": number}) if as_json else said)


@app.command(epilog="Example: tessera device decrypt --data-dir DEVICE")
def decrypt(data_dir: DataDir, as_json: Json = False) -> None:
    """Write the private files of a device in clear again. Killed half-way, run it again."""
    number = Device.open(data_dir).decrypt()
    typer.echo(json.dumps({"files": number}) if as_json else f"{number} private files of {data_dir} are in clear")


def _new_passphrase(device: Device) -> str:
    """A passphrase from the environment or, twice, from the terminal; of a folder that was begun, the one it has."""
    if given := os.environ.get(PASSPHRASE):
        return given
    return str(typer.prompt("Passphrase", hide_input=True, confirmation_prompt=device.encryption == "none"))


def _require_elsewhere(key_file: Path, folder: Path) -> None:
    if folder.resolve() in key_file.resolve().parents:
        raise ConfigError(f"{key_file} is in the folder that it would open: keep the key elsewhere")
