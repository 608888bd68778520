"""Which other devices' keys a device takes to be real: `devices.json` in its folder, and what it makes of a group's keys.

A server that may invent devices can surround a real one, and read its answers as the sum of a group. So keys are remembered:

- Where the policy names an `operator`, those on the list that the operator signed are admitted, and no others. A list that is
  over, or older than one that came before, is refused: it may hold keys that were revoked since.
- Otherwise those that the device was first told of are (trust on first use): its first group's, and those on the list
  that came with it. A later group may hold a few others (the policy's `newcomers`), which stay strangers however often
  they come, until the owner admits them.

Keys are named by fingerprints, as `ssh-keygen -l` and `tessera federate list` do.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.client.owner.policy import Policy
from tessera.common.errors import DataError, PolicyRefused
from tessera.common.protocol.masked.key_list import KeyList
from tessera.common.utils.atomic_files import PRIVATE, read_json, write_bytes
from tessera.common.utils.folder_lock import waiting_for

KEYS, LOCK = "devices.json", ".devices.lock"
MOST_STRANGERS = 1000
"""Keys that are remembered though nobody admitted them, the latest: a server must not fill the disk."""
Admitted = Literal["", "first use", "owner", "operator"]
"""Who or what says that a key is a real device's; "": nobody does."""


class KnownKey(BaseModel):
    """What is known of a key."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    first_seen: str
    """When it was first in a group or on a list, in UTC."""
    admitted: Admitted = ""


class KnownKeys(BaseModel):
    """All keys that a device has seen, by fingerprint, and the operator's latest list."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    operator: str = ""
    """Who signed the latest list."""
    serial: int = 0
    """The number of that list."""
    keys: dict[str, KnownKey] = {}

    @property
    def admitted(self) -> frozenset[str]:
        """The fingerprints of those that are admitted."""
        return frozenset(name for name, key in self.keys.items() if key.admitted)

    def with_keys(self, names: Sequence[str], admitted: Admitted = "") -> "KnownKeys":
        """With these keys too; one that is admitted stays so. Of those that are not, the oldest are forgotten."""
        now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}"
        new = {name: self.keys.get(name, KnownKey(first_seen=now)) for name in names}
        if admitted:
            new = {name: key.model_copy(update={"admitted": key.admitted or admitted}) for name, key in new.items()}
        keys = self.keys | new
        strangers = sorted(
            (name for name, key in keys.items() if not key.admitted), key=lambda name: keys[name].first_seen
        )
        forgotten = set(strangers[: max(0, len(strangers) - MOST_STRANGERS)])
        return self.model_copy(update={"keys": {name: key for name, key in keys.items() if name not in forgotten}})

    def without(self, names: Iterable[str]) -> "KnownKeys":
        """With these keys admitted by nobody."""
        dropped = {name: self.keys[name].model_copy(update={"admitted": ""}) for name in names}
        return self.model_copy(update={"keys": self.keys | dropped})

    def with_list(self, listed: KeyList, operator: str) -> "KnownKeys":
        """With the operator's list: its keys are admitted by it, and none that it does not hold."""
        kept = self.without(self.keys.keys() - listed.admitted)
        kept = kept.model_copy(update={"operator": operator, "serial": listed.serial})
        return kept.with_keys(listed.keys, "operator")


@contextmanager
def changing_keys(folder: Path) -> Iterator[None]:
    """Within it nobody else changes the known keys: an owner admits some while a server's group is looked at. Raises
    `StorageError`."""
    with waiting_for(folder / LOCK):
        yield


def read_keys(folder: Path) -> KnownKeys:
    """The keys that a device's folder knows; none where there is no file. Raises `DataError` for a damaged one."""
    path = folder / KEYS
    if not path.exists():
        return KnownKeys()
    try:
        return KnownKeys.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(
            f"{path} is damaged ({error.error_count()} mistakes): restore it, or remove it, and the next "
            "group's keys are taken to be real"
        ) from None


def write_keys(folder: Path, keys: KnownKeys) -> None:
    """Write them down. Raises `StorageError`."""
    write_bytes(folder / KEYS, (keys.model_dump_json(indent=1) + "\n").encode(), PRIVATE)


def admit(folder: Path, policy: Policy, others: Sequence[str], listed: KeyList | None) -> None:
    """Let a group of this device and `others` (fingerprints) pass, or raise `PolicyRefused`; either way its keys are noted.

    `listed` came along with the group.
    """
    with changing_keys(folder):
        before = read_keys(folder)
        if policy.operator:
            after, found = _by_operator(before.with_keys(others), policy.operator, others, listed)
        else:
            after, found = _by_memory(before, policy, others, listed, folder)
        if after != before:
            write_keys(folder, after)
    if found:
        raise PolicyRefused(found[0], f"a group of {len(others) + 1} devices: {found[1]}")


Found = tuple[str, str] | None
"""Why a group is refused: the kind, and the reason for the owner."""


def _by_operator(
    seen: KnownKeys, operator: str, others: Sequence[str], listed: KeyList | None
) -> tuple[KnownKeys, Found]:
    latest = seen.serial if seen.operator == operator else 0
    if listed is None or not listed.is_signed(operator):
        return seen, ("operator-list", "no list of devices came that the operator signed whom the policy names")
    if listed.is_over():
        return seen, (
            "operator-list",
            f"the operator's list of devices was good until {listed.until}: a new one is due",
        )
    if listed.serial < latest:
        told = f"the operator's list came in number {listed.serial}, and number {latest} is known: keys may be revoked"
        return seen, ("operator-list", told)
    after = seen if listed.serial == latest else seen.with_list(listed, operator)
    if strangers := [name for name in others if name not in listed.admitted]:
        return after, ("unlisted", f"{', '.join(strangers)} not on the operator's list, number {listed.serial}")
    return after, None


def _by_memory(
    before: KnownKeys, policy: Policy, others: Sequence[str], listed: KeyList | None, folder: Path
) -> tuple[KnownKeys, Found]:
    seen = before.with_keys(others)
    if not before.keys:
        return seen.with_keys([*others, *(listed.keys if listed else ())], "first use"), None
    strangers = [name for name in others if name not in seen.admitted]
    few = 3 * len(strangers) < len(others) + 1
    if not strangers or policy.newcomers == "any" or (few and policy.newcomers == "few"):
        return seen, None
    allowed = "fewer than a third" if policy.newcomers == "few" else "none"
    told = f"{len(strangers)} have keys that are new here, newcomers allows {allowed}: {', '.join(strangers)}. "
    told += f"Once you know whose they are: tessera device keys admit FINGERPRINT --data-dir {folder}"
    return seen, ("newcomers", told)
