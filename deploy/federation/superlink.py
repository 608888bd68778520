"""Runs the server of a federation from its folder: starts Flower's SuperLink, and asks it to register, revoke and run.

A server's folder holds `ca.crt ca.key server.pem server.key` (`tessera.deploy.federation.certificates`), `state.db` (registered
keys and past runs), `server.json` (its ports) and Flower's homes.
"""

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.common.errors import RunError, TesseraError
from tessera.common.utils.atomic_files import read_json, write_bytes, write_json
from tessera.deploy.federation.certificates import Certificates, check_server
from tessera.deploy.federation.processes import LOOPBACK, Process, environment, free_port, program, start, tail
from tessera.deploy.federation.registry import REVOKED, RegisteredNode, fingerprint, note, registered_nodes

if TYPE_CHECKING:
    from tessera.deploy.job import Job

CONNECTION = "tessera"
PORT, CONTROL_PORT = 9092, 9093
"""Where a server listens unless it is told otherwise: for devices, and for its operator."""
HOMES = "home"
"""Below a server's folder: Flower's homes."""
START_SECONDS = 60.0
ASK_SECONDS = 60.0
KNOWN = "already in use"
"""What Flower says when a key is registered a second time."""
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

    Whoever reaches the control port can run code on the server, for Flower 1.39 asks no name there.
    """

    folder: Path
    host: str
    port: int
    control_port: int

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
        return cls(folder.absolute(), content["host"], content["port"], content["control-port"])

    def save(self) -> None:
        """Note the ports for those who register keys and submit runs."""
        content = {"format": 1, "host": self.host, "port": self.port, "control-port": self.control_port}
        write_json(self.folder / "server.json", content)

    @property
    def certificates(self) -> Certificates:
        """Its certificates."""
        return Certificates(self.folder)


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
    return start("server", command, server.folder / HOMES / "server", log)


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


def write_app(folder: Path, job: "Job") -> Path:
    """Write the Flower app of a job: a pyproject.toml that names the installed apps, and the run's settings. No code.

    So the server ships no code to devices: what runs there is what the device's owner installed. (Flower 1.39 does not
    enforce this: a device trusts the server whose ca.crt it was given not to send another app.)
    """
    config = {
        "settings": job.settings.model_dump_json(),
        "catalogue": str(job.catalogue.absolute()),
        "run-dir": str(job.run_dir.absolute()),
        "resume": job.resume,
    }
    # A JSON string without \\u escapes is a TOML basic string.
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()]
    write_bytes(folder / "pyproject.toml", (APP + "".join(lines)).encode())
    return folder


class Control:
    """Asks a SuperLink through the `flwr` command: its options are Flower's public interface, its Python is not."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.home = server.folder / HOMES / "control"
        address, ca = f"{LOOPBACK}:{server.control_port}", json.dumps(str(server.certificates.ca))
        config = f'[superlink.{CONNECTION}]\naddress = "{address}"\nroot-certificates = {ca}\n'
        write_bytes(self.home / "config.toml", config.encode())

    def register(self, public_key: Path) -> bool:
        """Let in the device with this key; false when it was registered before.

        Raises `CertificateError` for what is no key, `RunError` for one that was revoked: Flower never takes it again.
        """
        key = fingerprint(public_key)
        try:
            answer = self._ask("register", "supernode", "register", str(public_key.absolute()), CONNECTION)
        except RunError as error:
            if KNOWN not in str(error):
                raise
            if any(device.key == key and device.state == REVOKED for device in self.devices()):
                raise RunError(
                    f"register: {public_key} was revoked, and no revoked key is taken again; {ANEW}"
                ) from None
            return False
        note(self.server.folder, str(answer["node-id"]), public_key)
        return True

    def devices(self) -> list[RegisteredNode]:
        """The devices there are, revoked ones too, in the order they were registered. Raises `RunError`."""
        return registered_nodes(self.server.folder, self._ask("list", "supernode", "list", CONNECTION)["nodes"])

    def revoke(self, device: RegisteredNode) -> None:
        """Cut a device off and never let it in again. Raises `RunError`."""
        self._ask("revoke", "supernode", "unregister", device.number, CONNECTION)

    def submit(self, app: Path) -> str:
        """Start a run of an app; return its id. Raises `RunError`."""
        return str(self._ask("submit", "run", str(app.absolute()), CONNECTION)["run-id"])

    def status(self, run: str) -> RunStatus:
        """How a run stands. Raises `RunError` when the server does not answer."""
        row = self._ask("status", "list", CONNECTION, "--run-id", run)["runs"][0]
        details = str(row["status-details"]).removeprefix("ServerApp failed with exception: ")
        return RunStatus(str(row["status"]), "" if details == "N/A" else details)

    def stop(self, run: str) -> None:
        """Stop a run. Raises `RunError` when it has ended already."""
        self._ask("stop", "stop", run, CONNECTION)

    def log(self, run: str) -> str:
        """What the run's ServerApp wrote; "" when the server does not answer."""
        return self._flwr("log", run, CONNECTION, "--show").stdout

    def _ask(self, stage: str, *command: str) -> dict[str, Any]:
        """Flower's answer as JSON. It exits with 0 on many a failure, so only "success" in the answer counts."""
        done = self._flwr(*command, "--format", "json")
        answer = _last_object(done.stdout)
        if not answer.get("success"):
            reason = answer.get("error-message") or tail(done.stdout + done.stderr)
            reason = re.sub(r"^Using SuperLink.*\n|\[code: \d+\] ", "", str(reason), flags=re.MULTILINE).strip()
            raise RunError(f"{stage}: {reason or 'flwr said nothing'} (server in {self.server.folder})")
        return answer

    def _flwr(self, *command: str) -> "subprocess.CompletedProcess[str]":
        try:
            return subprocess.run(
                [program("flwr"), *command],
                env=environment(self.home),
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASK_SECONDS,
                start_new_session=True,  # Ctrl-C is for us to handle
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"flwr {command[0]}: no answer in {ASK_SECONDS:g} s; is the server overloaded?") from None


def _last_object(text: str) -> dict[str, Any]:
    """The JSON object that ends `text`, {} when there is none."""
    found = re.search(r"^\{.*^\}", text, flags=re.DOTALL | re.MULTILINE)
    try:
        content = json.loads(found[0]) if found else {}
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
