"""Sends a device an app bundle with code in it, as a server may, and looks whether any of it is run.

The device's worker is a process of its own, as in a federation, and is asked as the node asks it.
"""

import shutil
import socket
import subprocess
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk

from tessera.benchmarks.audit.findings import Finding, Size
from tessera.common.config.settings import Settings
from tessera.common.errors import RunError
from tessera.common.flower_internals.fleet import Envelope, name_message, pack, unpack, write_context
from tessera.common.flower_internals.grid import speak_as
from tessera.deploy.federation.processes import module
from tessera.deploy.federation.worker import receive_frames, send_frames

CODE = """
from pathlib import Path
Path({marker!r}).write_text("code of the server's ran on the device")
from flwr.clientapp import ClientApp
app = ClientApp()
"""
PYPROJECT = """
[project]
name = "other"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "somebody"
[tool.flwr.app.components]
serverapp = "{module}:app"
clientapp = "{module}:app"
[tool.flwr.app.config]
"""
MODULES = ("hostile", "tessera.client.app", "sitecustomize")
"""What the bundle's code is called: as its own, as the module that the device runs, and as one that Python imports itself."""


def attack_by_code(settings: Settings, dataset: Path, seed: int, size: Size) -> list[Finding]:
    """Count the bundles whose code ran. Raises `RunError` where the worker did not answer, which would show nothing."""
    folder = Path(tempfile.mkdtemp())
    try:
        ran = sum(_ran(folder / str(number), name) for number, name in enumerate(MODULES))
        return [Finding("code in the app's bundle", "ran", float(ran), float(len(MODULES)), 0.0)]
    finally:
        shutil.rmtree(folder)


def _ran(folder: Path, name: str) -> bool:
    """Whether a bundle with code in a module of this name makes a worker run it."""
    code, marker = folder / "bundle" / f"{name.replace('.', '/')}.py", folder / "marker"
    code.parent.mkdir(parents=True)
    code.write_text(CODE.format(marker=str(marker)))
    (folder / "bundle" / "pyproject.toml").write_text(PYPROJECT.format(module=name))
    said = ask_worker(build_fab_from_disk(folder / "bundle"), folder)
    if "speaks protocol 0" not in said:
        raise RunError(f"the installed app did not answer a device's message, but: {said[:200]}")
    return marker.exists()


def ask_worker(bundle: bytes, folder: Path) -> str:
    """What a worker with that bundle answers to a task of no protocol, which the installed app refuses in its own words."""
    speak_as(1, 1)
    message = Message(RecordDict({"task": ConfigRecord({"protocol": 0})}), 2, "query")
    name_message(message, message.object_id)
    envelope = pack(message)
    objects = [part for name, content in envelope.objects.items() for part in (name.encode(), content)]
    context = write_context(Context(1, 2, {"data-dir": str(folder)}, RecordDict(), {}, 5))
    ours, theirs = socket.socketpair()
    with theirs:
        worker = subprocess.Popen(
            module("worker", "work", str(theirs.fileno())), pass_fds=[theirs.fileno()], cwd=folder
        )
    try:
        with Connection(ours.detach()) as connection:
            send_frames(connection, [context, bundle, envelope.head, envelope.tree, *objects])
            _, _, head, tree, *parts = receive_frames(connection)
    finally:
        worker.kill()
        worker.wait()
    contents = {name.decode(): content for name, content in zip(parts[::2], parts[1::2], strict=True)}
    reply = unpack(Envelope(head, tree, contents))
    return str(reply.error.reason) if reply.has_error() else str(reply.content)
