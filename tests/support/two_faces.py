"""A server that sends one device other views than the rest, signs both, and is else as ours: a ServerApp in a bundle's code.

It is not imported by tests: `lying_app` puts it into the bundle of a run, whose server then runs it.
"""

import hashlib
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from tessera.common.protocol.messages import Task
from tessera.server.app import app
from tessera.server.dispatch import Dispatcher
from tessera.server.nodes.request import Asked, Request

__all__ = ["app"]
_honest = Dispatcher._send


def _send(self: Dispatcher, nodes: list[int], task: Task, request: Request) -> dict[str, Asked]:
    victim = min(self.grid.get_node_ids())
    if task.kind != "train" or victim not in nodes or self.signer is None:
        return _honest(self, nodes, task, request)
    right = request.broadcasts[victim]
    wrong = replace(right, written={name: 2 * value for name, value in right.content.items()})
    signed = self.signer.sign(task, wrong.shared, request.inputs, self.secure.roster if self.secure else "")
    theirs = replace(request, broadcasts={victim: wrong}, statement=signed)
    others = [node for node in nodes if node != victim]
    return _honest(self, [victim], task, theirs) | (_honest(self, others, task, request) if others else {})


if __name__ != "tests.support.two_faces":  # in the server's process, where Flower imports it from the bundle
    Dispatcher._send = _send  # type: ignore[method-assign]


def lying_app(pyproject: bytes) -> bytes:
    """The bundle of an app that is described by a pyproject.toml as ours is, with this file as its ServerApp."""
    described = pyproject.replace(b"tessera.server.app:app", b"two_faces:app")
    files = {"pyproject.toml": described, "two_faces.py": Path(__file__).read_bytes()}
    lines = [f"{name},{hashlib.sha256(content).hexdigest()},{8 * len(content)}" for name, content in files.items()]
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in {**files, ".info/CONTENT": "\n".join(lines).encode()}.items():
            bundle.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()
