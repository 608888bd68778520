"""Gives simulated devices of a run the private states that their people have in the run it continues."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tessera.client.people.events import load_people
from tessera.client.private_state import PrivateState, Store
from tessera.common.data.catalogue import load_catalogue
from tessera.common.protocol.messages import Ancestor


def hand_on(devices: Path, folders: Sequence[Path], ancestors: Sequence[Ancestor]) -> None:
    """Copy to each of `folders` what its people are in the runs `ancestors` on the devices below `devices`, wherever they were.

    Real devices keep their own. Who was on none of the old ones starts afresh.
    """
    people = [set(_users(folder)) for folder in folders]
    for block, old in enumerate(sorted(devices.glob("node-*"))):
        for ancestor, state in _states(old, ancestors):
            for folder, here in zip(folders, people, strict=True):
                if coming := [user for user in state.users if user in here]:
                    Store(folder / "private" / ancestor.run).save(block, ancestor.round, state.of(coming))


def _states(device: Path, ancestors: Sequence[Ancestor]) -> Iterator[tuple[Ancestor, PrivateState]]:
    """The states of a device's people: each in the nearest of the runs in which they have one."""
    missing = _users(device)
    for ancestor in ancestors:
        store = Store(device / "private" / ancestor.run)
        if missing and (state := store.find(missing, ancestor.round + 1, 0)):
            missing = tuple(user for user in missing if user not in set(state.users))
            yield ancestor, state


def _users(device: Path) -> tuple[str, ...]:
    return load_people(device, len(load_catalogue(device, modalities=False))).users
