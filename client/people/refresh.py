"""Teaches one person's private state what they did since it was trained: a few local steps, between the rounds of a federation.

private/RUN/refreshed/*.safetensors     a person's state, and the round and tensors that it belongs to

The views are those that recommendations come from, nothing leaves the device, and no other file is touched: neither the states
that rounds leave, from which the next round and a resumed run go on, nor anybody else's. A refreshed state counts for
recommendations alone, for as long as they come from the round that it began from; then it is superseded.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tessera.client import cohort
from tessera.client.device_folder import DeviceFolder
from tessera.client.histories import Histories
from tessera.client.private_state import PrivateState, state_of, state_tensors
from tessera.client.run_note import Moment
from tessera.common.config.settings import LocalSettings
from tessera.common.errors import DataError
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils.atomic_files import PRIVATE, digest, read_metadata, read_tensors, sweep, write_tensors

FOLDER, BASE = "refreshed", "of"
STEPS = 10
"""Local steps of a refresh; see benchmarks/RESULTS.md for what more and fewer do."""


def refreshed(
    state: PrivateState, sent: Tensors, known: Histories, settings: LocalSettings, seed: int, round: int, steps: int
) -> PrivateState:
    """The private state of people after `steps` local steps on all that they had, `known`, with what was sent held still."""
    local = settings.model_copy(update={"local_epochs": steps})
    return cohort.train(state, sent, known, local, seed, round)[0]


class Refreshed:
    """The refreshed states of one run on a device."""

    def __init__(self, device: DeviceFolder, run: str) -> None:
        self.device, self.folder = device, device.private(run) / FOLDER

    def load(self, user: str, moment: Moment) -> PrivateState | None:
        """A person's refreshed state, where there is one that belongs to `moment`; a damaged one counts for nothing."""
        if not self.folder.exists() or not (path := self._path(user)).exists():
            return None
        try:
            tensors, metadata = read_tensors(path)
            state = state_of(path, tensors, metadata)
        except DataError:
            return None
        return state if metadata.get(BASE) == _written(moment) and state.users == (user,) else None

    def save(self, user: str, moment: Moment, state: PrivateState) -> None:
        """Keep a person's refreshed state. Raises `StorageError`."""
        tensors, metadata = state_tensors(state)
        write_tensors(self._path(user), tensors, metadata | {BASE: _written(moment)}, PRIVATE)

    def tidy(self, moments: Iterable[Moment]) -> None:
        """Drop what belongs to none of `moments`: no recommendation comes from it any more."""
        if not self.folder.exists():
            return
        needed = {_written(moment) for moment in moments}
        sweep(self.folder)
        for path in self.folder.glob("*.safetensors"):
            try:
                kept = read_metadata(path).get(BASE) in needed
            except DataError:
                kept = False
            if not kept:
                path.unlink(missing_ok=True)

    def _path(self, user: str) -> Path:
        """A file whose name tells nobody who has not the device's secret whose it is."""
        return self.folder / f"{digest(f'{FOLDER} {self.device.secret()} {user}'.encode())[:16]}.safetensors"


def drop_refreshed(folder: Path, user: str) -> None:
    """Drop a person's refreshed states of all runs, as when they are forgotten, or an event is taken back."""
    device = DeviceFolder(folder)
    for own in (folder / "private").glob(f"*/{FOLDER}"):
        sweep(own)
        Refreshed(device, own.parent.name)._path(user).unlink(missing_ok=True)


def _written(moment: Moment) -> str:
    return json.dumps([moment.round, moment.tensors])
