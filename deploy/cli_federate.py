"""`tessera federate`: a federation on separate machines, one command each.

    server    tessera federate certificates SERVER_DIR --host server.example
    server    tessera federate server --dir SERVER_DIR
    device    tessera federate join --server server.example:9092 --data-dir DEVICE_DIR --ca ca.crt
    server    tessera federate submit CONFIG --dir SERVER_DIR --catalogue DATASET

and once for each device, `tessera federate register` on the server.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from common.config import load_settings
from common.errors import RunError
from deploy import federate
from deploy.certificates import make_certificates
from deploy.job import Job
from deploy.processes import relay, terminable
from deploy.superlink import Control, Server, start_superlink
from deploy.supernode import join as join_federation
from deploy.supernode import public_key

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help=(__doc__ or "").replace("\n    ", "\n\n    "))

ServerDir = Annotated[Path, typer.Option("--dir", help="The server's folder, made by `certificates`.")]


@app.command()
def certificates(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder; made if there is none.")],
    host: Annotated[
        list[str], typer.Option(help="A name or address devices reach the server by; may be repeated.")
    ] = [],  # noqa: B006
    days: Annotated[int, typer.Option(min=1, help="Days that the server's certificate is valid.")] = 365,
    renew: Annotated[
        bool, typer.Option("--renew", help="Sign a new server certificate with the authority there is.")
    ] = False,
) -> None:
    """Make the certificates of a server.

    Example: `tessera federate certificates server --host server.example --host 10.0.0.7`
    """
    files = make_certificates(folder, host, days, renew=renew)
    typer.echo(f"Give each device {files.ca}. The other files stay on the server.")


@app.command()
def server(
    folder: ServerDir,
    host: Annotated[str, typer.Option(help="The address to listen on for devices.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="The port devices connect to.")] = 9092,
    control_port: Annotated[int, typer.Option(help="The port for register and submit, on this machine only.")] = 9093,
) -> None:
    """Run a server until interrupted. It lets in devices whose keys are registered, and no others.

    Example: `tessera federate server --dir server`
    """
    where = Server(folder.absolute(), host, port, control_port)
    with terminable():
        last = relay(start_superlink(where), typer.echo)
    raise RunError(f"server: Flower's SuperLink ended:\n{last}")


@app.command()
def key(data_dir: Annotated[Path, typer.Argument(help="The device's folder.")]) -> None:
    """Make a device's key, if it has none, and say what to do with its public half. The private half never leaves it.

    Example: `tessera federate key device`
    """
    path = public_key(data_dir)
    typer.echo(f"{path} is this device's public key. Bring it to the server and register it there:")
    typer.echo(f"    tessera federate register --dir SERVER_DIR {path.name}")


@app.command()
def register(
    folder: ServerDir,
    keys: Annotated[list[Path], typer.Argument(metavar="KEY.pub...", help="Public keys of devices.")],
) -> None:
    """Let devices in, once for each. The server must be running.

    Example: `tessera federate register --dir server node.key.pub`
    """
    control = Control(Server.load(folder))
    for path in keys:
        typer.echo(f"{path}: " + ("registered" if control.register(path) else "was registered already"))


@app.command()
def join(
    server: Annotated[str, typer.Option(help="The server, as HOST:PORT.")],
    data_dir: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The device's folder.")],
    ca: Annotated[Path, typer.Option(help="The server's ca.crt.")],
) -> None:
    """Take part in a federation with a device's folder, until interrupted. Makes the device's key on first use.

    The server must have registered the key: see `tessera federate key` and `register`.

    Example: `tessera federate join --server server.example:9092 --data-dir device --ca ca.crt`
    """
    typer.echo(f"The public key of this device is {public_key(data_dir)}")
    with terminable():
        join_federation(data_dir, server, ca, typer.echo)


@app.command()
def submit(
    config: Annotated[Path, typer.Argument(help="The run's settings, a YAML file.")],
    folder: ServerDir,
    catalogue: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The server's dataset folder.")],
    runs: Annotated[Path, typer.Option(help="Where runs are kept.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
) -> None:
    """Start a run on a running server, on its machine, and follow it. Interrupted, it stops the run.

    The run waits until as many devices as the setting federation.nodes says have joined.

    Example: `tessera federate submit config.yaml --dir server --catalogue data/shop`
    """
    settings = load_settings(config)
    job = Job(settings, catalogue, devices=(), run_dir=runs / settings.name, resume=resume)
    with terminable():
        federate.carry_out(job, Control(Server.load(folder)), lambda line: typer.echo(describe(line)))
    typer.echo(f"completed; see {job.run_dir}")


def describe(line: dict[str, Any]) -> str:
    """One line of metrics as text: plain figures first, then the scores."""
    flat = {name: value for name, value in line.items() if name != "kind" and not isinstance(value, dict)}
    nested = [value for value in line.values() if isinstance(value, dict)]
    for scores in nested:
        flat |= scores
    figures = [f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in flat.items()]
    return " ".join([str(line.get("kind", "")), *figures]).strip()
