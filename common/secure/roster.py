"""Makes rosters of what devices announced, on the server, and checks on a device whether a roster is to be believed."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tessera.common.errors import SecureSumError, SecureSumRefused
from tessera.common.secure.groups import FEWEST, LARGEST, USUAL, draw_groups
from tessera.common.secure.keys import KEY, agree
from tessera.common.secure.messages import Announcement, KeysRequest, Roster


@dataclass(frozen=True)
class Policy:
    """What a device insists on.

    Args:
        admit: Is given the public keys of the other nodes in a group (`tessera.common.secure.keys.node_key_bytes`), how many
            people are behind it, and what came beside the roster, and raises for a group that the device will not be in.
        people: The smallest number of people in a sum.
        devices: The smallest number of devices in a sum.
        group: The smallest number of devices in a roster.
        read: Is given the number of an epoch, that of an ask, the fingerprints of the other devices whose answers would be read
            as a sum, and whether this one's is among them; and raises where this device does not help to read it.
    """

    admit: Callable[[Sequence[bytes], int, bytes], None]
    people: int
    devices: int = 2
    group: int = FEWEST
    read: Callable[[int, int, frozenset[str], bool], None] = lambda epoch, ask, others, own: None


def check_announcement(announcement: Announcement, request: KeysRequest) -> None:
    """Check on the server what a device announced in answer to `request`: one that is let pass can stop no group.

    Raises `SecureSumError` when it answers something else, is not signed by its node, or holds a key that is none.
    """
    who = f"the device with key {announcement.fingerprint}"
    if announcement.request != request:
        raise SecureSumError(f"{who} announced keys for something else")
    if not announcement.is_signed():
        raise SecureSumError(f"the announcement of {who} is not signed by it")
    probe = X25519PrivateKey.generate()
    for key in (announcement.envelope, *(announcement.key(ask) for ask in range(request.asks))):
        agree(probe, key, who)


def make_rosters(announcements: Iterable[Announcement], size: int = USUAL) -> list[Roster]:
    """Draw the groups of an epoch from announcements that `check_announcement` let pass, and build a roster for each.

    Raises `SecureSumError` for too few devices, and for two announcements of one node.
    """
    by_hash = {announcement.digest: announcement for announcement in announcements}
    if twice := _twice([announcement.node for announcement in by_hash.values()]):
        name = next(one.fingerprint for one in by_hash.values() if one.node in twice)
        raise SecureSumError(f"the device with key {name} announced keys twice: keep one announcement of it")
    everyone = tuple(sorted(by_hash))
    groups = draw_groups(everyone, size)
    return [Roster(everyone, size, tuple(by_hash[digest] for digest in group)) for group in groups]


def check_roster(roster: Roster, own: Announcement, policy: Policy, beside: bytes = b"") -> int:
    """Check all that a device can of a roster, and of what came `beside` it; return the device's place in it.

    Raises `SecureSumRefused` with what is wrong, and what `Policy.admit` raises.
    """
    members = roster.members
    if len(members) < max(policy.group, FEWEST) or len(members) > LARGEST:
        raise SecureSumRefused(f"the group has {len(members)} devices; this device wants {policy.group} to {LARGEST}")
    places = [place for place, member in enumerate(members) if member == own]
    if len(places) != 1:
        raise SecureSumRefused("the roster does not hold what this device announced, unchanged and once")
    for place, member in enumerate(members):
        if member.request != own.request:
            raise SecureSumRefused(f"{roster.name(place)} announced keys for another run or epoch")
        if not member.is_signed():
            raise SecureSumRefused(f"the announcement of {roster.name(place)} is not signed by it")
    _check_keys(members)
    _check_draw(roster)
    people = roster.people((True,) * len(members))
    policy.admit([member.node for member in members if member != own], people, beside)
    if people < policy.people:
        raise SecureSumRefused(f"behind the group are {people} people; this device wants at least {policy.people}")
    return places[0]


def _check_keys(members: Sequence[Announcement]) -> None:
    keys = [member.keys[at : at + KEY] for member in members for at in range(0, len(member.keys), KEY)]
    keys += [key for member in members for key in (member.envelope, member.signing)]
    if _twice([member.node for member in members]) or _twice(keys):
        raise SecureSumRefused("a key is in the roster twice: somebody would be counted as several devices")


def _check_draw(roster: Roster) -> None:
    """The group must be one that the hashes of all announcements give."""
    group = tuple(member.digest for member in roster.members)
    if list(roster.everyone) != sorted(set(roster.everyone)) or group not in draw_groups(roster.everyone, roster.size):
        raise SecureSumRefused("the group is not one that the announcements of all devices draw: somebody chose it")


def _twice(values: Sequence[bytes]) -> set[bytes]:
    seen: set[bytes] = set()
    return {value for value in values if value in seen or seen.add(value)}  # type: ignore[func-returns-value]
