"""Does what each container of docker-compose.yml is for: `python -m tessera.deploy.docker.entrypoint server|client|train`.

They meet in two volumes. In `registration` each client puts its public key, whose private half stays in the client's own
volume. In `published` the server's side puts `ca.crt`, the dataset, the operator's public key, and `assignments.json`: whose
keys are registered, in the order in which the users are divided among them. Containers come and go, so a client counts as long
as it touches its key.
"""

import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen
from typing import Any, NoReturn

from rich.console import Console

from tessera.client.device_folder import POLICY
from tessera.client.owner.known_keys import KEYS
from tessera.client.owner.ledger import LEDGER
from tessera.client.owner.statements import SERVER_KEY, STATEMENTS
from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Settings
from tessera.common.data.folder_kinds import INTERACTIONS
from tessera.common.datasets.dataset_folder import replacing
from tessera.common.errors import RunError, TesseraError
from tessera.common.metrics.records import read_result
from tessera.common.secure.keys import NODE_KEY_FILE
from tessera.common.utils.atomic_files import read_json, write_bytes, write_json
from tessera.deploy.api.display import show_result
from tessera.deploy.cli import federate as cli_federate
from tessera.deploy.docker import healthcheck
from tessera.deploy.docker.healthcheck import (
    CLIENT_NAME,
    PUBLIC_KEY_FILE,
    PUBLISHED,
    REGISTRATION,
    SERVER_NAME,
    fresh,
)
from tessera.deploy.executors.run import prepare_towers
from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.operator_list import read_operator, sign_for
from tessera.deploy.federation.processes import program, terminable
from tessera.deploy.federation.superlink import PORT, Control, Server
from tessera.deploy.federation.supernode import HOME, public_key
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.deploy.provisioning.partition import partition_one
from tessera.deploy.provisioning.trial import answer_for_few
from tessera.server.run_folder import STATUS, read_status

SERVER, DEVICE, RUNS, DATA = Path("/server"), Path("/device"), Path("/runs"), Path("/data")
OPERATOR, OPERATOR_KEY = Path("/operator"), "operator.key"
"""Mounted for the submitter alone, which signs for the clients that there are: the server has not the key."""
CHECKOUT = Path(__file__).parents[2] / "benchmarks"
"""Mounted from where docker-compose.yml lies; its owner owns the runs."""
USER = 1000
"""The image's own user."""
KEPT = (HOME, NODE_KEY_FILE, f"{NODE_KEY_FILE}.pub", POLICY, LEDGER, KEYS, SERVER_KEY, STATEMENTS)
"""Of a device's folder, what stays when its people are others."""
ASSIGNMENTS = PUBLISHED / "assignments.json"
DAYS = 365
BEAT = 0.5
"""Seconds between two looks of a client at the assignments, and two signs of life."""
LOOK, WAIT = 0.2, 120.0
"""Seconds between two looks of the submitter for the server and the clients, and how long it waits for them."""
REPORT_WIDTH = 100


def server() -> None:
    """Run the server until stopped. Its authority is made once; its certificate is signed anew at each start."""
    _become_owner(SERVER, PUBLISHED)
    files = make_certificates(SERVER, [SERVER_NAME], DAYS, renew=(SERVER / "ca.crt").exists())
    write_bytes(PUBLISHED / "ca.crt", files.ca.read_bytes())
    cli_federate.server(SERVER)


def train() -> None:
    """Register the clients there are, assign users to each, and carry out the run; go on with one that was cut short."""
    _become_owner(OPERATOR)
    config, run = Path(os.environ["CONFIG"]), RUNS / os.environ["RUN"]
    settings = load_settings(config, "grpc", [f"name={run.name}"])
    if _completed(run):
        _write_report(run, settings)
        print(f"the run in runs/{run.name} is complete; RUN=another begins a new one", flush=True)
        return
    _wait_until((PUBLISHED / "ca.crt").exists, "the server has not made its certificates")  # then the volume is ours
    dataset = _dataset(settings)
    _wait_until(_server_answers, "the server does not answer")
    _wait_until(_all_show_their_keys, "not all clients show their keys")
    resume, keys = (run / "config.yaml").exists(), registrations(REGISTRATION)
    assignments: dict[str, Any] = {"dataset": str(dataset), "clients": list(keys)}
    if settings.strategy_spec.has_towers:
        assignments["settings"] = settings.model_dump(mode="json", include={"name", "data", "strategy", "mosaic"})
    if resume and _assignments() != assignments:
        raise RunError(
            f"runs/{run.name} was begun with other clients, data or device classes, and what devices learnt stays with them: "
            "start as many, with the same volumes, or choose another RUN"
        )
    control = Control(Server.load(SERVER))
    for key in keys.values():
        control.register(key)
    sign_for(control.server.admitted, OPERATOR / OPERATOR_KEY, keys.values(), DAYS)
    write_bytes(PUBLISHED / f"{OPERATOR_KEY}.pub", (OPERATOR / f"{OPERATOR_KEY}.pub").read_bytes())
    write_json(ASSIGNMENTS, assignments)
    changes = [f"name={run.name}", f"federation.nodes={len(keys)}"]
    cli_federate.submit(config, SERVER, dataset, RUNS, changes, resume)
    _write_report(run, settings)


def client() -> NoReturn:
    """Show this device's key until users are assigned to it; take their data, and join; anew when the assignments change."""
    key = public_key(DEVICE).read_text()
    write_bytes(PUBLIC_KEY_FILE, key.encode())
    try:
        while True:
            _beat_while(lambda: key not in _assignments().get("clients", ()))
            _take_part(key, _assignments())
    finally:
        PUBLIC_KEY_FILE.unlink()


def _take_part(key: str, assignments: dict[str, Any]) -> None:
    """Join with this client's users until the assignments change. Raises `RunError` when `join`, which is patient, gives up."""
    clients = assignments["clients"]
    take_assignment(DEVICE, assignments["dataset"], clients.index(key), len(clients), assignments.get("settings"))
    answer_for_few([DEVICE], read_operator(PUBLISHED / f"{OPERATOR_KEY}.pub"))
    with _joined() as process:
        _beat_while(lambda: process.poll() is None and _assignments() == assignments)
        if process.returncode is not None:
            raise RunError(f"`tessera federate join` ended with exit code {process.returncode}")


def registrations(folder: Path) -> dict[str, Path]:
    """The keys that live clients show in `folder`, in an order that depends on the keys alone, and where. Raises `RunError`."""
    found = {path.read_text(): path for path in folder.glob("*.pub") if fresh(path)}
    if not found:
        raise RunError("no client shows its key: does one run? See `docker compose ps`")
    return dict(sorted(found.items()))


def _wait_until(there: Callable[[], bool], trouble: str) -> None:
    """Wait until something is `there`; raise `RunError` with what the `trouble` is when it is not in time.

    Compose could wait for healthy containers instead, but looks at them every 5 s, at first after 5 s.
    """
    deadline = time.monotonic() + WAIT
    while not there():
        if time.monotonic() > deadline:
            raise RunError(f"{trouble} after {WAIT:g} s; see `docker compose ps` and `docker compose logs`")
        time.sleep(LOOK)


def _server_answers() -> bool:
    with suppress(OSError):
        healthcheck.server()
        return True
    return False


def _all_show_their_keys() -> bool:
    """Whether there are as many keys as containers of clients, which the network knows. Those that are gone leave theirs."""
    with suppress(OSError):
        containers = socket.gethostbyname_ex(CLIENT_NAME)[2]
        return len([path for path in REGISTRATION.glob("*.pub") if fresh(path)]) == len(containers)
    return False


def take_assignment(
    device: Path, dataset: str, partition: int, n_partitions: int, towers: dict[str, Any] | None = None
) -> None:
    """Give a device its partition of a dataset, unless it holds that, or interactions that its owner brought.

    `towers` are the settings of a strategy that has some: then the device also gets that of its class, and its questions where
    it answers any. What was learnt about people of another partition goes with them; what is `KEPT` stays.
    """
    wanted, note = {"dataset": dataset, "partition": partition, "of": n_partitions}, device / "assignment.json"
    wanted |= {"settings": towers} if towers else {}
    if read_json(note) == wanted if note.exists() else (device / INTERACTIONS).exists():
        return
    write_json(note, {})  # from here until the end neither this partition's nor the owner's
    for path in device.iterdir():
        if path.name in (*KEPT, note.name):
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    settings = Settings.model_validate(towers) if towers else None
    if settings is None or not settings.asks_questions:
        partition_one(Path(dataset), device, partition, n_partitions)
    if settings is not None:
        from tessera.deploy.provisioning.towers import equip, give_questions  # needs PEFT, which not every image has

        if settings.asks_questions:
            give_questions(Path(dataset), device, partition, n_partitions)
        equip(Path(dataset), device, partition, settings)
    write_json(note, wanted)


def _dataset(settings: Settings) -> Path:
    """The run's dataset, converted where all containers see it; with towers, which get a start there, a copy of it."""
    made = PUBLISHED / "datasets"
    dataset = prepared_dataset(settings.data, DATA, made)
    if settings.strategy_spec.has_towers:
        from tessera.server.pretraining.fit_readers import ensure_towers

        if not dataset.is_relative_to(made):
            copy = made / dataset.name
            if not copy.exists():
                with replacing(copy) as folder:
                    shutil.copytree(dataset, folder, dirs_exist_ok=True)
            dataset = copy
        ensure_towers(dataset, settings, lambda text: print(text, flush=True))
        prepare_towers(dataset, settings)
    return dataset


def _completed(run: Path) -> bool:
    return (run / STATUS).exists() and read_status(run).state == "completed"


def _write_report(run: Path, settings: Settings) -> None:
    """What a completed run ended with, for people to read."""
    with (run / "report.txt").open("w", encoding="utf-8") as file:
        show_result(Console(file=file, width=REPORT_WIDTH), read_result(run), settings, run)


def _assignments() -> dict[str, Any]:
    return read_json(ASSIGNMENTS) if ASSIGNMENTS.exists() else {}


def _beat_while(condition: Callable[[], bool]) -> None:
    """Show that this client lives, while `condition` holds."""
    while condition():
        PUBLIC_KEY_FILE.touch()
        time.sleep(BEAT)


@contextmanager
def _joined() -> Iterator[Popen[bytes]]:
    """Within it, this device has joined; afterwards it has signed off."""
    command = ["tessera", "federate", "join", "--server", f"{SERVER_NAME}:{PORT}", "--data-dir", str(DEVICE)]
    process = Popen([program(command[0]), *command[1:], "--ca", str(PUBLISHED / "ca.crt")])
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _become_owner(*folders: Path) -> None:
    """Give up root for the owner of the checkout, who gets `folders` and the runs; for the image's user where that is root."""
    there = CHECKOUT.stat()
    user, group = (there.st_uid, there.st_gid) if there.st_uid else (USER, USER)
    for folder in folders:
        if folder.stat().st_uid != user:
            for path in (folder, *folder.rglob("*")):
                os.chown(path, user, group, follow_symlinks=False)
    os.chown(RUNS, user, group)
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)


if __name__ == "__main__":
    try:
        with terminable():
            {"server": server, "client": client, "train": train}[sys.argv[1]]()
    except TesseraError as error:
        sys.exit(f"error: {error}")
