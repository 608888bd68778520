"""Begins an epoch of secure sums: asks devices for keys, draws their groups, and hands their shares on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.common.errors import SecureSumError
from tessera.common.protocol.masked.key_list import KeyList
from tessera.common.protocol.masked.stages import only
from tessera.common.secure.group import SecureGroup
from tessera.common.secure.messages import Announcement, KeysRequest, Shares
from tessera.common.secure.roster import check_announcement, make_rosters
from tessera.common.secure.shares import threshold
from tessera.server.secure.exchange import Exchange


@dataclass
class Epoch:
    """Groups of devices with keys for so many asks.

    `members` says where a node is: its group, and its place in it. `used` counts the asks.
    """

    request: KeysRequest
    groups: Sequence[SecureGroup]
    members: dict[int, tuple[int, int]]
    used: int = 0

    @property
    def left(self) -> int:
        """How many asks it has left."""
        return self.request.asks - self.used

    @property
    def most_people(self) -> int:
        """The largest number of people that a device registered with."""
        return max(member.people for group in self.groups for member in group.roster.members)

    def nodes(self, group: int) -> list[int]:
        """The nodes of a group that shared their keys."""
        return nodes_of(group, self.members)

    def serves(self, n: int, ready: Sequence[int]) -> bool:
        """Whether n more asks can go to nodes that are ready: enough of each group are there."""
        there = [len(set(self.nodes(at)) & set(ready)) for at in range(len(self.groups))]
        enough = all(own >= threshold(len(group.present)) for own, group in zip(there, self.groups, strict=True))
        return n <= self.left and enough


def nodes_of(group: int, members: Mapping[int, tuple[int, int]]) -> list[int]:
    """The nodes of a group, by what `Epoch.members` says."""
    return [node for node, (own, _) in members.items() if own == group]


def begin(
    exchange: Exchange,
    nodes: Sequence[int],
    request: KeysRequest,
    size: int,
    known: dict[int, bytes],
    listed: KeyList | None = None,
) -> Epoch:
    """Make an epoch with those of `nodes` that answer; a device that does not is left out of it.

    `known` are the nodes' public keys: one that comes with another than before is not taken, nor one that is not on the
    operator's list, where there is one. Raises `SecureSumError` where no group comes together.
    """
    announced: dict[int, Announcement] = {}

    def announce(node: int, messages: tuple[bytes, ...]) -> None:
        announcement = Announcement.read(only(messages))
        check_announcement(announcement, request)
        if known.setdefault(node, announcement.node) != announcement.node:
            raise SecureSumError("its key is another than before")
        if any(one.node == announcement.node for one in announced.values()):
            raise SecureSumError("another node has the same key")
        if listed and announcement.fingerprint not in listed.admitted:
            raise SecureSumError(f"its key {announcement.fingerprint} is not on the operator's list of devices")
        announced[node] = announcement

    exchange.ask("keys", [(nodes, [request.write()])], announce)
    groups = [SecureGroup(roster) for roster in make_rosters(announced.values(), size)]
    members = _members(groups, announced)
    everybody = listed or KeyList.of(one.fingerprint for one in announced.values())
    received = _share(exchange, groups, members, everybody)
    kept = [group for group in groups if group.present]
    if not kept:
        raise SecureSumError(f"no group of devices shared its keys: {'; '.join(exchange.troubles)}")
    again = {group: at for at, group in enumerate(kept)}
    there = {
        node: (again[groups[at]], place)
        for node, (at, place) in members.items()
        if node in received and groups[at] in again
    }
    return Epoch(request, kept, there)


def _members(groups: Sequence[SecureGroup], announced: Mapping[int, Announcement]) -> dict[int, tuple[int, int]]:
    places = {
        member.digest: (at, place)
        for at, group in enumerate(groups)
        for place, member in enumerate(group.roster.members)
    }
    return {node: places[announcement.digest] for node, announcement in announced.items()}


def _share(
    exchange: Exchange, groups: Sequence[SecureGroup], members: Mapping[int, tuple[int, int]], listed: KeyList
) -> set[int]:
    """Show each device its group, beside the list of all keys, and hand the shares on that it sends for the others; return the
    nodes that have theirs.

    One that shared its own and does not get the others' is in the group's sums like a device that is lost before each.
    """

    def share(node: int, messages: tuple[bytes, ...]) -> None:
        shares, (at, place) = Shares.read(only(messages)), members[node]
        if shares.sender != place:
            raise SecureSumError("it sent shares in another's name")
        groups[at].take_shares(shares)

    rosters = [(nodes_of(at, members), [group.roster.write(), listed.write()]) for at, group in enumerate(groups)]
    exchange.ask("roster", rosters, share)
    sent = []
    for at, group in enumerate(groups):
        by_place = {members[node][1]: node for node in nodes_of(at, members)}
        try:
            deliveries = group.deliveries()
        except SecureSumError as error:
            exchange.troubles.append(str(error))
            continue
        sent += [([by_place[place]], [delivery.write()]) for place, delivery in deliveries.items()]
    received: set[int] = set()
    exchange.ask("delivery", sent, lambda node, messages: received.add(node))
    return received
