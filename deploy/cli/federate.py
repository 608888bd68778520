"""The commands `tessera federate ...`: run a federation on separate machines.

    server    tessera federate certificates SERVER_DIR --host server.example
    server    tessera federate server --dir SERVER_DIR
    device    tessera federate join --server server.example:9092 --data-dir DEVICE_DIR --ca ca.crt
    server    tessera federate submit CONFIG --dir SERVER_DIR --catalogue DATASET

and once for each device, `tessera federate register` on the server; `list` shows them there, `revoke` shuts them out.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from tessera.common.data.folder_kinds import is_dataset, no_device
from tessera.common.errors import RunError, RunStopped
from tessera.common.protocol.signed.keys import key_name, public_half, signing_key
from tessera.common.utils.encryption.seam import KEY_FILE, is_encrypted
from tessera.common.utils.folder_lock import hold_folder
from tessera.common.utils.text.wording import number_of
from tessera.deploy.api.tables import print_table
from tessera.deploy.cli.overview import app as overview
from tessera.deploy.cli.train import Changes, Config, Continue, Node
from tessera.deploy.environment import NodeKind
from tessera.deploy.federation.certificates import CertificateError, change_authority, make_certificates
from tessera.deploy.federation.operator_list import make_operator_key, read_operator, sign_list, take_off
from tessera.deploy.federation.processes import end_leftovers, relay, terminable
from tessera.deploy.federation.registry import RegisteredNode, find
from tessera.deploy.federation.superlink import (
    CONTROL_PORT,
    HOMES,
    PORT,
    Control,
    Server,
    publication,
    start_superlink,
)
from tessera.deploy.federation.supernode import join as join_federation
from tessera.deploy.federation.supernode import public_key

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Run a federation on separate machines: server, devices, certificates and keys.\n\n"
    "In four commands: `certificates` and `server` on the server, `join` on each "
    "device, `submit` on the server. Once for each device, `register` its public key on the server; `list` shows them, "
    "`revoke` shuts them out.",
)

app.add_typer(overview)

NEW_CA = (
    "Start the server again. Devices trust it by the ca.crt they have, and by the new one. Once all have the new one, "
    "--drop-old-ca ends the old authority."
)
OLD_CA = "Start the server again. A device that has the old ca.crt alone does not get in any more."
ServerDir = Annotated[Path, typer.Option("--dir", help="The server's folder, made by `certificates`.")]


@app.command(epilog="Example: tessera federate certificates server --host server.example --host 10.0.0.7")
def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR")],
    host: Annotated[
        list[str] | None, typer.Option(help="A name or address devices reach the server by; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days that the server's certificate is valid.")] = 365,
    renew: Annotated[
        bool, typer.Option("--renew", help="Sign a new server certificate with the authority there is.")
    ] = False,
    new_ca: Annotated[
        bool,
        typer.Option("--new-ca", help="Make a new authority, for which the old one vouches: devices trust either."),
    ] = False,
    drop_old_ca: Annotated[
        bool, typer.Option("--drop-old-ca", help="Once all devices have the new ca.crt: the old authority is gone.")
    ] = False,
) -> None:
    """Make a server's folder DIR with an authority and a server certificate, which always holds localhost too.

    What is renewed is used from the server's next start; devices join again by themselves.
    """
    if new_ca and drop_old_ca:
        raise CertificateError(
            "certificates: --new-ca begins a change of authorities and --drop-old-ca ends it: pass one"
        )
    if new_ca or drop_old_ca:
        files = change_authority(folder, host or [], days, drop_old=drop_old_ca)
        typer.echo(NEW_CA if new_ca else OLD_CA)
    else:
        files = make_certificates(folder, host or [], days, renew=renew)
    typer.echo(f"Give each device {files.ca}. The other files stay on the server.")


@app.command(epilog="Example: tessera federate server --dir server")
def server(
    folder: ServerDir,
    host: Annotated[str, typer.Option(help="The address to listen on for devices; all by default.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port devices connect to.")] = PORT,
    control_port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port for register and submit, on this machine only.")
    ] = CONTROL_PORT,
    model_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="The port where anybody may take the published model; 0: nobody may. By default two above --port.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a server until interrupted. It lets in devices whose keys are registered, and no others."""
    where = Server(folder.absolute(), host, port, control_port, port + 2 if model_port is None else model_port)
    where.certificates.require()
    with terminable(), hold_folder(where.folder):
        end_leftovers(where.folder / HOMES)
        with publication(where, typer.echo):
            superlink = start_superlink(where)
            typer.echo(f"Devices join --server HOST:{port} with a copy of {where.certificates.ca}")
            typer.echo(f"What it asks is signed by the key {key_name(public_half(signing_key(where.signing_key)))}")
            if where.model_port:
                typer.echo(f"Models that runs publish are pulled from HOST:{where.model_port}")
            last = relay(superlink, _show_server)
    raise RunError(f"server: Flower's SuperLink ended:\n{last}")


def _show_server(line: str) -> None:
    """Show what the SuperLink says, but not each of a run's ten requests a second."""
    if "[uvicorn.access]" not in line:
        typer.echo(line)


@app.command(epilog="Example: tessera federate key device")
def key(data_dir: Annotated[Path, typer.Argument(exists=True, file_okay=False)]) -> None:
    """Say where the public key of the device with folder DATA_DIR is, and what to do with it.

    `join` makes the key as well, where there is none. The private key never leaves the folder.
    """
    path = public_key(data_dir)
    typer.echo(f"{path} is this device's public key. Bring it to the server and register it there:")
    typer.echo(f"    tessera federate register --dir SERVER_DIR {path.name}")


@app.command(epilog="Example: tessera federate register --dir server node.key.pub")
def register(folder: ServerDir, keys: Annotated[list[Path], typer.Argument(metavar="KEY.pub...")]) -> None:
    """Let in the devices with these public keys. Once for each device, while the server runs, on its machine."""
    control = Control(Server.load(folder))
    for path in keys:
        typer.echo(f"{path}: " + ("registered" if control.register(path) else "was registered already"))


@app.command(epilog="Example: tessera federate operator operator.key")
def operator(key: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Make an operator's key in FILE, best on another machine than the server: with it you say which devices there are."""
    public = make_operator_key(key)
    typer.echo(f"Give each device {public}, for `join --operator`. {key} stays here, away from the server.")
    typer.echo(f"    tessera federate sign admitted.json node.key.pub... --key {key}")


@app.command(epilog="Example: tessera federate sign admitted.json node.key.pub --key operator.key")
def sign(
    listed: Annotated[Path, typer.Argument(metavar="LIST")],
    key: Annotated[Path, typer.Option(help="The operator's private key, made by `operator`.")],
    add: Annotated[list[str] | None, typer.Argument(metavar="KEY.pub|SHA256:...")] = None,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="KEY.pub|SHA256:...", help="A device to take off; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="Days after which devices want a newer list.")] = 365,
) -> None:
    """Sign the list of the devices that there are, with more of them or fewer, and bring it to the server's folder.

    Devices that joined with the operator's public key answer in secure sums of these devices alone. A run takes a new list up
    by itself.
    """
    signed = sign_list(listed, key, add or (), remove or (), days)
    typer.echo(
        f"{listed} is number {signed.serial}, with {number_of(len(signed.keys), 'device')}, good until {signed.until}"
    )
    typer.echo("Copy it to the server: SERVER_DIR/admitted.json")


@app.command("list", epilog="Example: tessera federate list --dir server")
def list_devices(
    folder: ServerDir,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list instead of a table.")] = False,
) -> None:
    """List the devices that a running server knows, on its machine: registered, online, offline or revoked, since when."""
    devices = Control(Server.load(folder)).devices()
    if as_json:
        print(json.dumps([asdict(device) for device in devices]))
    else:
        _show_devices(devices)


def _show_devices(devices: Sequence[RegisteredNode]) -> None:
    """Print devices; into a pipe each on one line, however wide it is: whoever reads one searches in lines."""
    table = Table("device", "state", "since", "key", "registered from", box=None, pad_edge=False)
    for one in devices:
        table.add_row(one.number, one.state, one.since, one.key or "-", escape(one.file) or "-")
    console = Console(highlight=False)
    if not console.is_terminal:
        widest = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        console.width = max(console.width, widest)
    print_table(console, table)


@app.command(epilog="Example: tessera federate revoke --dir server node.key.pub 11531438331418944970")
def revoke(
    folder: ServerDir,
    devices: Annotated[
        list[str], typer.Argument(metavar="KEY.pub|NUMBER...", help="Their keys, or numbers in `list`.")
    ],
    operator: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="The operator's private key, where it is here: signs the list without them."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="With --operator: days that the new list is good for.")] = 365,
) -> None:
    """Shut devices out for good, while the server runs, on its machine. A key that was revoked is never taken again.

    A run that is going on goes on without them: what they had not returned yet is lost. Where an operator signs for devices,
    the list has to be signed without them too: until then other devices would still share keys with them.
    """
    control = Control(Server.load(folder))
    known = control.devices()
    chosen = [find(known, name) for name in devices]
    for device in chosen:
        if device.revoked:
            typer.echo(f"{device.number}: was revoked already, on {device.since}")
            continue
        control.revoke(device)
        typer.echo(f"{device.number}: revoked. It is cut off within half a minute; runs go on without it.")
    for line in take_off(control.server.admitted, [device.key for device in chosen], operator, days):
        typer.echo(line)


@app.command(epilog="Example: tessera federate join --server server.example:9092 --data-dir device --ca ca.crt")
def join(
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The server; waited for if it is not up yet.")],
    data_dir: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The device's folder.")],
    ca: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The ca.crt of the server.")],
    operator: Annotated[
        Path | None,
        typer.Option(
            help="The operator's public key: in secure sums are then none but the devices that it signed for."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="What an encrypted folder opens with; TESSERA_KEY_FILE by default.", show_default=False),
    ] = None,
    node: Node = NodeKind.tessera,
) -> None:
    """Take part in a federation with a device's folder, until interrupted.

    Makes the device's key on first use; the server must register its public half once: see `key` and `register`.
    """
    if is_dataset(data_dir):
        raise RunError(f"join: {no_device(data_dir)}")
    if key_file is not None:
        os.environ[KEY_FILE] = str(key_file.absolute())  # the node that is started reads it there
    if node is NodeKind.flower and is_encrypted(data_dir):
        raise RunError(f"join: {data_dir} is encrypted, which Flower's SuperNode cannot read: leave --node out")
    typer.echo(f"The public key of this device is {public_key(data_dir)}")
    if operator:
        from tessera.client.owner.policy import read_policy, write_policy

        write_policy(data_dir, read_policy(data_dir).model_copy(update={"operator": read_operator(operator)}))
    with terminable():
        join_federation(data_dir, server, ca, typer.echo, node)


@app.command(epilog="Example: tessera federate submit benchmarks/demo.yaml --dir server --catalogue data/shop")
def submit(
    config: Config,
    folder: ServerDir,
    catalogue: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The server's dataset folder.")],
    runs: Annotated[Path, typer.Option(help="Folder the runs lie in.")] = Path("runs"),
    change: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was stopped or killed.")] = False,
    forever: Annotated[
        bool,
        typer.Option("--forever", help="Train until stopped, however many rounds CONFIG says: devices come and go."),
    ] = False,
    continues: Continue = None,
) -> None:
    """Start a run with the settings CONFIG on a running server, on its machine, and follow it. Interrupted, it stops.

    The run begins when as many devices have joined as the setting federation.nodes says. With --forever it then waits
    whenever too few are there, never gives up, and is stopped by `tessera federate stop`.
    """
    from tessera.deploy.api.display import show_result
    from tessera.deploy.api.federation import Federation
    from tessera.deploy.api.lasting import submit_forever
    from tessera.deploy.api.settings import load_config

    settings, console = load_config(config, *(change or ()), executor="grpc"), Console(highlight=False)
    try:
        with terminable():
            federation = Federation(folder)
            if forever:
                result = submit_forever(federation, settings, catalogue, runs, resume, continues, console)
            else:
                result = federation.submit(
                    settings, catalogue, runs=runs, resume=resume, continues=continues, progress=console
                )
    except RunStopped:
        if not forever:
            raise
        typer.echo(f"{settings.name} was stopped; go on with --resume")
        return
    show_result(console, result.record, settings, result.path)
    print(json.dumps(result.figures))
