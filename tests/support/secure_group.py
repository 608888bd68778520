"""Devices that take part in secure sums, and their server; every message is written and read on its way."""

from collections.abc import Iterable, Mapping

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from tessera.common.secure.device import SecureDevice
from tessera.common.secure.fixed_point import Spec
from tessera.common.secure.group import SecureAsk, SecureGroup, SecureSum
from tessera.common.secure.messages import (
    Announcement,
    Delivery,
    KeysRequest,
    MaskedUpload,
    Roster,
    Shares,
    UnmaskReply,
    UnmaskRequest,
)
from tessera.common.secure.roster import Policy, check_announcement, make_rosters

TASK, TENSORS = b"a task", b"hash of its tensors"
LAYOUT = (
    Spec("views", (2, 9, 4), "table", 3.0),
    Spec("weight", (), "scalar", 100.0),
    Spec("counts", (9,), "scalar", 1e6),
)
EVERYBODY = Policy(lambda keys, people, beside: None, people=1)
Values = Mapping[str, Tensor]


def values(seed: int) -> dict[str, Tensor]:
    """What a device has to add up, within the layout's bounds."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "views": torch.rand(2, 9, 4, generator=generator) * 6 - 3,
        "weight": torch.rand((), generator=generator) * 100,
        "counts": torch.randint(0, 10**6, (9,), generator=generator),
    }


def announce(n: int, asks: int = 2, policy: Policy = EVERYBODY, people: int = 5) -> list[SecureDevice]:
    """Devices with keys of their own."""
    request = KeysRequest.read(KeysRequest("run", 7, asks).write())
    return [SecureDevice.announce(request, people, ec.generate_private_key(ec.SECP384R1()), policy) for _ in range(n)]


def one_roster(devices: list[SecureDevice]) -> tuple[Roster, list[SecureDevice]]:
    """Everybody's roster where all are one group, and the devices in its order."""
    announcements = [Announcement.read(device.announcement.write()) for device in devices]
    for announcement in announcements:
        check_announcement(announcement, devices[0].announcement.request)
    (roster,) = make_rosters(announcements, 64)
    by_node = {device.announcement.node: device for device in devices}
    return Roster.read(roster.write()), [by_node[member.node] for member in roster.members]


def share(devices: list[SecureDevice], silent: Iterable[int] = ()) -> tuple[SecureGroup, list[SecureDevice]]:
    """A group that shared its keys; the devices at the places in `silent` announced theirs, and were lost."""
    roster, devices = one_roster(devices)
    group = SecureGroup(roster)
    for place, device in enumerate(devices):
        if place not in silent:
            group.take_shares(Shares.read(device.share(roster).write()))
    for place, delivery in group.deliveries().items():
        devices[place].receive(Delivery.read(delivery.write()))
    return group, devices


def upload(device: SecureDevice, ask: int, given: Values) -> MaskedUpload:
    """A device's masked upload as it arrives."""
    message = device.mask(ask, TASK, TENSORS, given, LAYOUT, device.place)
    return MaskedUpload.read(message.write())


def collect(group: SecureGroup, devices: list[SecureDevice], ask: int, given: Mapping[int, Values]) -> SecureAsk:
    """A sum of the places in `given`, still masked."""
    total = group.ask(ask, TASK, TENSORS, LAYOUT)
    for place, one in given.items():
        total.add(upload(devices[place], ask, one))
    return total


def unmask(total: SecureAsk, devices: list[SecureDevice], helpers: Iterable[int]) -> SecureSum:
    """The sum, with the help of the devices at these places."""
    request = UnmaskRequest.read(total.request().write())
    for place in helpers:
        total.take(UnmaskReply.read(devices[place].unmask(request).write()))
    return total.result()


def plain(given: Mapping[int, Values]) -> dict[str, Tensor]:
    """What the sum should be."""
    return {spec.name: sum((one[spec.name].double() for one in given.values()), torch.zeros(())) for spec in LAYOUT}


def check_sum(found: SecureSum, given: Mapping[int, Values], n: int) -> None:
    """The sum of n devices' group must be that of those in `given`, to the fixed point's precision."""
    assert found.answered == tuple(sorted(given))
    for spec in LAYOUT:
        error = (found.values[spec.name] - plain(given)[spec.name]).abs().max()
        assert error <= len(given) * 2.0 ** -spec.exponent(n), spec.name
    assert torch.equal(found.values["counts"], plain(given)["counts"]), "counts are whole"
