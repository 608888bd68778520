"""Forgets a person: nothing of them stays in a file of the device's folder.

What was added into past sums cannot be taken out of these again. Whoever is killed in the middle of it begins again: events go
last, so the person is known until all else is gone.
"""

from pathlib import Path

from tessera.client.device_folder import POLICY
from tessera.client.owner.ledger import LEDGER
from tessera.client.owner.statements import STATEMENTS
from tessera.client.people.events import People, in_use
from tessera.client.people.preferences import Preferences, change_preferences
from tessera.client.people.refresh import drop_refreshed
from tessera.client.private_state import Store
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import PRIVATE, sweep, write_bytes


def forget(folder: Path, user: str) -> None:
    """Remove a person's private states of all runs, what logs say of them, and their events.

    With the last person go ledger, policy and what servers signed. Raises `DataError` for a stranger; then nothing is changed.
    """
    with in_use(folder):
        people = People(folder)
        if user not in (known := people.users()):
            raise DataError(f"user {user!r} is not on this device ({folder})")
        for store in sorted(path.parent for path in (folder / "private").rglob("block-*")):
            Store(store).forget(user)
        drop_refreshed(folder, user)
        change_preferences(folder, user, lambda _: Preferences())
        for log in folder.glob("*.log"):
            _unsay(log, user)
        if known == (user,):
            for name in (LEDGER, STATEMENTS, POLICY):
                (folder / name).unlink(missing_ok=True)
        people.remove(user)
        sweep(folder)


def _unsay(log: Path, user: str) -> None:
    """Drop the lines of a log that name a person."""
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if user.encode() not in line]
    if len(kept) < len(lines):
        write_bytes(log, b"".join(kept), PRIVATE)
