"""A device's folder as every kind of work finds it: the tensors it holds, its private states, and its name in a run.

views/HASH.safetensors      tensors received from the server; simulated devices have links to what they share
published/                  the model that was pulled from a server; see `tessera.client.published`
private/RUN/run.json        the run's settings, and which tensors belong to the last state and to the selected one
secret                      a number that nobody else knows, drawn on first use
policy.yaml, ledger.jsonl   what the owner lets be answered, and what was; see `tessera.client.owner`
server-key.json             the server's key, and statements.jsonl what it signed of all that it asked
"""

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tessera.client.published.model import held_model
from tessera.client.run_note import Moment, RunNote
from tessera.common.errors import DataError
from tessera.common.protocol.adapters import MODULE
from tessera.common.protocol.messages import Task
from tessera.common.protocol.tensors import Tensors, content_hash
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import (
    PRIVATE,
    digest,
    read_bytes,
    read_tensors,
    sweep,
    write_bytes,
    write_json,
    write_tensors,
)

log = logging.getLogger("tessera.device")
NOTE, POLICY = "run.json", "policy.yaml"


class TensorsMissing(Exception):
    """The device does not hold the tensors its task names: the server has to send them again."""


def shared_tensors_folder(devices: Path) -> Path:
    """Where simulated nodes, whose folders lie side by side in `devices`, find the tensors that were sent to them."""
    return devices / "views"


def simulated_devices(run_id: int) -> Path:
    """Where simulated nodes of a run that `flwr run` started find their folders: a link in Flower's home on this machine.

    The ServerApp of a simulation makes it for as long as the run lasts. No server elsewhere can, so none names folders here.
    """
    home = os.environ.get("FLWR_HOME")
    return (Path(home) if home else Path.home() / ".flwr") / "tessera" / str(run_id)


class DeviceFolder:
    """What is below `folder`. A `simulated` device hides nothing: its noise and its name can be repeated."""

    def __init__(self, folder: Path, simulated: bool = False) -> None:
        self.folder, self.simulated = folder, simulated
        self._written: tuple[str, Tensors] = "", {}

    @property
    def views(self) -> Path:
        """Folder of the tensors received."""
        return self.folder / "views"

    def tensors(self, name: str) -> Path:
        """The file of the tensors with a content hash."""
        return self.views / f"{name}.safetensors"

    def private(self, run: str) -> Path:
        """Folder of the private states of a run."""
        return self.folder / "private" / run

    @property
    def has_owner(self) -> bool:
        """Whether somebody decides what this device answers: nobody does for a simulated one, unless a policy lies there."""
        return not self.simulated or (self.folder / POLICY).exists()

    def participation(self, task: Task) -> int:
        """What is drawn by who of the people here takes part in the rounds of a run: of a device with an owner, its secret,
        so that no server can draw until one person is alone."""
        return counter_rng.key(task.run, self.secret()) if self.has_owner else task.settings.seed

    def secret(self) -> int:
        """A number that only this device knows."""
        if self.simulated:
            return counter_rng.key("secret", self.folder.name)
        path = self.folder / "secret"
        if not path.exists():
            write_bytes(path, secrets.token_hex(8).encode(), PRIVATE)
        try:
            return int(read_bytes(path), 16)
        except ValueError:
            raise DataError(f"{path} is damaged: restore it, or remove it, and this device is another one") from None

    def noise_key(self, run: str) -> int:
        """What this device's noise in a run is drawn from: of two runs it differs, or their difference would be free of it."""
        return counter_rng.key("noise", "" if self.simulated else run, self.secret())

    def client(self, run: str) -> str:
        """This device's name in a run, which tells nothing and links no two runs."""
        return digest(f"{run if not self.simulated else ''} {self.secret()}".encode())[:16]

    def hold(self, task: Task, tensors: Tensors | None) -> Tensors:
        """Keep the tensors that came along, if they are what their name says, or find those the task names."""
        if not task.tensors:
            return {}
        path = self.tensors(task.tensors)
        if tensors is None:
            if self.simulated:
                self._take(path)
            try:
                return read_tensors(path)[0]
            except DataError:
                path.unlink(missing_ok=True)  # a damaged file is in the way of a whole one
                raise TensorsMissing(task.tensors) from None
        name, written = self._written
        if tensors is written and task.tensors == name and path.exists():  # for what was asked along with this task
            return tensors
        if content_hash(tensors) != task.tensors:
            raise DataError("the tensors that came are not those the task names")
        write_tensors(path, tensors)
        self._written = task.tensors, tensors
        return tensors

    def shared(self, task: Task, tensors: Tensors | None = None) -> str:
        """Content hash of those of a task's tensors, which came along or are held here, that all devices are sent alike. Raises
        `TensorsMissing`."""
        if not task.settings.strategy_spec.has_towers or not task.tensors:
            return task.tensors
        try:
            tensors = tensors or read_tensors(self.tensors(task.tensors))[0]
        except DataError:
            raise TensorsMissing(task.tensors) from None
        alike = {name: value for name, value in tensors.items() if not name.startswith(MODULE)}
        if len(alike) == len(tensors):
            return task.tensors
        return content_hash(alike) if alike else ""

    def _take(self, path: Path) -> None:
        """Link a shared file to `path`, if it is there and not here: so it stays for as long as this node needs it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shared = shared_tensors_folder(self.folder.parent) / path.name
        with suppress(FileNotFoundError, FileExistsError):
            try:
                os.link(shared, path)
            except PermissionError:  # how file systems without hard links refuse
                write_bytes(path, shared.read_bytes())

    def hear(self, task: Task) -> Task:
        """Note which round the server says is the best; return the task, with the rounds that must stay here as durable too."""
        path = self.private(task.run) / NOTE
        before = self._note(path)
        if before is None:
            return task
        sweep(path.parent)
        note = before.heard(task)
        if note != before:
            write_json(path, note.model_dump(mode="json"))
        return replace(task, durable=(*task.durable, *(moment.round for moment in note.kept)))

    def conclude(self, task: Task) -> RunNote:
        """Note which tensors belong to the state that `task` left, and drop those that no run needs any more."""
        path = self.private(task.run) / NOTE
        now = Moment(round=task.round, tensors=task.tensors)
        before = self._note(path) or RunNote(run=task.run, views=task.views, settings=task.settings, last=now)
        note = before.after(task)
        write_json(path, note.model_dump(mode="json"))
        sweep(path.parent)
        self.tidy()
        return note

    def tidy(self) -> None:
        """Drop the tensors that no run needs any more."""
        sweep(self.views)
        needed = set(self._needed())
        for held in self.views.glob("*.safetensors"):
            if held.stem not in needed:
                held.unlink(missing_ok=True)

    def _needed(self) -> Iterator[str]:
        """The tensors that the moments of all runs belong to, and those of the model that was pulled."""
        if model := held_model(self.folder):
            yield model.tensors
        for path in (self.folder / "private").glob(f"*/{NOTE}"):
            if note := self._note(path):
                yield from (moment.tensors for moment in (note.last, *note.kept))

    def _note(self, path: Path) -> RunNote | None:
        if not path.exists():
            return None
        try:
            return RunNote.read(path)
        except DataError as error:  # that run is lost for recommending until its next task; the others go on
            log.warning("%s; the tensors it names are not kept", error)
            return None
