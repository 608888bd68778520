"""Runs the server of a federation from its folder: starts Flower's SuperLink, and asks it to register, revoke and run.

A server's folder holds `ca.crt ca.key server.pem server.key` (`tessera.deploy.federation.certificates`), `state.db` (registered
keys and past runs), `server.json` (its ports) and Flower's homes.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tessera.common.errors import RunError, TesseraError
from tessera.common.flower_internals.control import app_bundle
from tessera.common.protocol.signed.keys import SIGNING_KEY
from tessera.common.utils.atomic_files import read_json, write_json
from tessera.common.utils.pauses import growing
from tessera.deploy.federation.certificates import Certificates, check_server, public_pem
from tessera.deploy.federation.processes import (
    FORKS,
    LOOPBACK,
    Process,
    free_port,
    module,
    program,
    start,
    stop,
    unproxied,
)
from tessera.deploy.federation.registry import RegisteredNode, fingerprint, note, registered_nodes

if TYPE_CHECKING:
    from tessera.common.flower_internals.control import ControlClient
    from tessera.deploy.job import Job

T = TypeVar("T")
PORT, CONTROL_PORT = 9092, 9093
"""Where a server listens unless it is told otherwise: for devices, and for its operator."""
HOMES = "home"
"""Below a server's folder: Flower's homes."""
START_SECONDS = 60.0
"""How long a server may take to answer once it has been started."""
AGAIN = (1.0, 60.0)
"""Seconds from one look whether the published model is given out to the next: longer while it is not, at most the second."""
ANEW = (
    "to let that device in, remove node.key and node.key.pub from its folder and register the key its next `join` makes"
)
APP = """\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "tessera"
version = "1.0.0"
description = "Names the apps that every machine has installed; carries no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "tessera"

[tool.flwr.app.components]
serverapp = "tessera.server.app:app"
clientapp = "tessera.client.app:app"

[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class Server:
    """Where a SuperLink keeps its files and listens: for devices on `host`:`port`, for its operator on loopback only.

    Whoever reaches the control port can run code on the server, for Flower 1.39 asks no name there. The published model is
    given out at `host`:`model_port`; 0: at none.
    """

    folder: Path
    host: str
    port: int
    control_port: int
    model_port: int = 0

    @classmethod
    def local(cls, folder: Path) -> "Server":
        """A server for this machine alone, on free ports."""
        return cls(folder.absolute(), LOOPBACK, free_port(), free_port())

    @classmethod
    def load(cls, folder: Path) -> "Server":
        """Read what `save` wrote. Raises `RunError` when no server ever ran from `folder`."""
        if not (folder / "server.json").is_file():
            raise RunError(f"no server has run from {folder}; start it with `tessera federate server --dir {folder}`")
        content = read_json(folder / "server.json")
        ports = content["port"], content["control-port"], content.get("model-port", 0)
        return cls(folder.absolute(), content["host"], *ports)

    def save(self) -> None:
        """Note the ports for those who register keys and submit runs."""
        ports = {"port": self.port, "control-port": self.control_port, "model-port": self.model_port}
        write_json(self.folder / "server.json", {"format": 1, "host": self.host} | ports)

    @property
    def reached(self) -> str:
        """The address by which this machine reaches what listens on `host`."""
        return LOOPBACK if self.host in ("0.0.0.0", "::", "") else self.host

    @property
    def certificates(self) -> Certificates:
        """Its certificates."""
        return Certificates(self.folder)

    @property
    def admitted(self) -> Path:
        """The list of devices' keys that its operator signed, where there is one."""
        return self.folder / "admitted.json"

    @property
    def signing_key(self) -> Path:
        """What its runs sign with; made by the first that needs it."""
        return self.folder / SIGNING_KEY

    @property
    def published(self) -> Path:
        """Where the best model lies that its runs have published; see `tessera.server.live.publication`."""
        return self.folder / "published"


@dataclass(frozen=True)
class RunStatus:
    """What Flower knows of a run: `state` like "running" or "finished:failed", and details of a failure or ""."""

    state: str
    details: str

    @property
    def finished(self) -> bool:
        """Whether the run is over."""
        return self.state.startswith("finished")


def start_superlink(server: Server, log: Path | None = None) -> Process:
    """Start a SuperLink that lets in registered devices only. Its state survives a restart. Raises `RunError`."""
    files = server.certificates
    files.require()
    server.save()
    command = ["flower-superlink", "--enable-supernode-auth", "--database", str(server.folder / "state.db")]
    command += ["--ssl-ca-certfile", str(files.ca), "--ssl-certfile", str(files.server)]
    command += ["--ssl-keyfile", str(files.server_key), "--fleet-api-address", f"{server.host}:{server.port}"]
    command += ["--host", LOOPBACK, "--port", str(server.control_port)]
    if FORKS:
        command = [program(command[0]), *command[1:], "--isolation", "process"]
        command = module("serverapps", f"{LOOPBACK}:{server.control_port}", str(files.ca), *command)
    return start("server", command, server.folder / HOMES / "server", log)


@contextmanager
def publication(server: Server, say: Callable[[str], None]) -> Iterator[None]:
    """Within it what the server's runs publish is given out at its model port, if it has one; what gives it out is started
    again when it dies, which is said.

    Raises `RunError` when nothing can listen there to begin with.
    """
    if not server.model_port:
        yield
        return
    _require_free(server.host, server.model_port)
    running, over = [_publish(server)], threading.Event()
    watch = threading.Thread(target=_keep_publishing, args=(server, running, over, say), daemon=True)
    try:
        _wait_until_given_out(server, running[0])
        watch.start()
        yield
    finally:
        over.set()
        stop(running[-1:])
        if watch.ident:
            watch.join()


def _keep_publishing(server: Server, running: list[Process], over: threading.Event, say: Callable[[str], None]) -> None:
    """Start what gives the model out again whenever it has ended, until it is `over`; the last of `running` is the one that
    runs. It ends with this thread too."""
    pauses = growing(*AGAIN)
    while not over.wait(next(pauses)):
        if (code := running[-1].popen.poll()) is None:
            pauses = growing(*AGAIN)
            continue
        say(f"What gives out the published model ended with exit code {code}: it is started again")
        running.append(_publish(server))
    stop(running[-1:])


def _publish(server: Server) -> Process:
    files, log = server.certificates, server.folder / HOMES / "publication" / "publication.log"
    command = module("publication", str(server.published), server.host, str(server.model_port))
    return start("publication", [*command, str(files.server), str(files.server_key)], log.parent, log)


def _wait_until_given_out(server: Server, process: Process) -> None:
    """Wait until what gives the model out answers. Raises `RunError` with the end of its log when it does not."""
    files, deadline = server.certificates, time.monotonic() + START_SECONDS
    while True:
        process.require()
        with suppress(OSError, TesseraError):
            check_server(server.reached, server.model_port, files.ca, LOOPBACK)
            return
        if time.monotonic() > deadline:
            raise RunError(f"publication: no answer in {START_SECONDS:g} s:\n{process.tail()}")
        time.sleep(0.1)


def _require_free(host: str, port: int) -> None:
    """Raise `RunError` where nothing can listen at a port: another process does, or the address is none of this machine's."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise RunError(
            f"server: the published model cannot be given out at {host}:{port} ({error.strerror}): choose another --model-port"
        ) from None


def wait_until_ready(server: Server, superlink: Process) -> None:
    """Wait until the SuperLink answers on both ports. Raises `RunError` with the end of its log when it dies."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        superlink.require()
        try:
            check_server(LOOPBACK, server.control_port, server.certificates.ca)
            check_server(LOOPBACK, server.port, server.certificates.ca)
            return
        except (
            OSError,
            TesseraError,
        ) as error:  # nobody there yet, or another server that ours is about to collide with
            if time.monotonic() > deadline:
                raise RunError(f"server: no answer in {START_SECONDS:g} s ({error}):\n{superlink.tail()}") from None
        time.sleep(0.1)


def describe_app(job: "Job", server: Server) -> bytes:
    """Describe the Flower app of a job for a server: a pyproject.toml that names the installed apps, and the run's settings. No
    code.

    So the server ships no code to devices: what runs there is what the device's owner installed. Tessera's own node would run
    none either; Flower's SuperNode runs what a server sends, and trusts the one whose ca.crt it was given.
    """
    config = {
        "settings": job.settings.model_dump_json(),
        "catalogue": str(job.catalogue.absolute()),
        "run-dir": str(job.run_dir.absolute()),
        "resume": job.resume,
        "forever": job.forever,
        "admitted": str(server.admitted),
        "signing": str(server.signing_key),
        "published": str(server.published) if job.publish else "",
        "continues": str(job.continues.absolute()) if job.continues else "",
    }
    # A JSON string without \\u escapes is a TOML basic string.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()]
    return (APP + "".join(lines)).encode()


class Control:
    """Asks a SuperLink what only its operator may: who takes part, and which runs there are.

    The first request imports Flower, half a second; `prepare` does that earlier. Raises `CertificateError` where the server's
    certificates are missing or out of date.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    def prepare(self) -> None:
        """Import what requests need. The server need not run yet."""
        self._client  # noqa: B018  makes it

    @cached_property
    def _client(self) -> "ControlClient":
        from tessera.common.flower_internals.control import ControlClient

        self.server.certificates.require()
        os.environ.update(unproxied())
        return ControlClient(f"{LOOPBACK}:{self.server.control_port}", self.server.certificates.ca.read_bytes())

    def register(self, public_key: Path) -> bool:
        """Let in the device with this key; false when it was registered before.

        Raises `CertificateError` for what is no key, `RunError` for one that was revoked: Flower never takes it again.
        """
        key = fingerprint(public_key)
        pem = public_pem(public_key)
        if (number := self._ask("register", lambda client: client.register(pem))) is None:
            if any(device.key == key and device.revoked for device in self.devices()):
                raise RunError(f"register: {public_key} was revoked, and no revoked key is taken again; {ANEW}")
            return False
        note(self.server.folder, str(number), public_key)
        return True

    def devices(self) -> list[RegisteredNode]:
        """The devices there are, revoked ones too, in the order they were registered. Raises `RunError`."""
        return registered_nodes(self.server.folder, self._ask("list", lambda client: client.nodes()))

    def revoke(self, device: RegisteredNode) -> None:
        """Cut a device off and never let it in again. Raises `RunError`."""
        self._ask("revoke", lambda client: client.unregister(int(device.number)))

    def submit(self, app: bytes) -> int:
        """Start a run of an app, given as its pyproject.toml; return its number. Raises `RunError`."""
        return self._ask("submit", lambda client: client.start_run(app_bundle(app)))

    def status(self, run: int) -> RunStatus:
        """How a run stands. Raises `RunError` when the server does not answer."""
        state, details = self._ask("status", lambda client: client.run(run))
        return RunStatus(state, details.removeprefix("ServerApp failed with exception: "))

    def stop(self, run: int) -> None:
        """Stop a run. Raises `RunError` when it has ended already."""
        self._ask("stop", lambda client: client.stop_run(run))

    def log(self, run: int) -> str:
        """What the run's ServerApp wrote; where it has written nothing yet, that is waited for. Raises `RunError`."""
        return self._ask("log", lambda client: client.log(run))

    def _ask(self, stage: str, request: "Callable[[ControlClient], T]") -> T:
        from tessera.common.flower_internals.control import ControlRefusal

        try:
            return request(self._client)
        except ControlRefusal as error:
            raise RunError(f"{stage}: {error} (server in {self.server.folder})") from None
