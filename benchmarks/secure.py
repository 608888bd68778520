"""python -m benchmarks.secure [--nodes 10 64 1000] [--lost 0.3]      (or, anywhere: python -m tessera.benchmarks.secure)

Measures what an answer costs under masks beside a plain one: a round of training on ml-latest-small's items, seven views
[7, 3650, 64] and a history view [3650, 64], by the number of nodes.

plain     float32, the gradient of each view
masked    the same under masks, in words of 32 bits
short     under masks along one direction of the views, in words of 16 bits: what a federation of devices does by default

No process and no network: the messages are made, written, handed over and read; training itself is not in it. CPU seconds are
of one thread. A device's are the mean of those that answer; the server's are for all groups, of which a share of devices is
lost before it uploads. Of many groups, which are all alike, `--groups` are simulated and the server's figures multiplied. A
device's bytes down are those of the secure sum: the views that are sent are the same for all. What an epoch's keys cost is for
all its asks, and is in no other figure. Ends with one line of JSON.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import process_time

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from torch import Tensor

from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Settings
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.masked.masking import MASKED, of_values, terms, to_values
from tessera.common.protocol.messages import HISTORY, VIEWS, Masking, Task
from tessera.common.protocol.projection import Projection, start
from tessera.common.protocol.tensors import array_bytes
from tessera.common.protocol.updates import Update, pack_update, unpack_update
from tessera.common.secure.device import SecureDevice
from tessera.common.secure.group import SecureGroup
from tessera.common.secure.groups import USUAL, group_sizes
from tessera.common.secure.messages import (
    EPOCH,
    Announcement,
    Delivery,
    KeysRequest,
    Roster,
    Shares,
    UnmaskReply,
    UnmaskRequest,
)
from tessera.common.secure.roster import Policy, check_announcement, make_rosters
from tessera.server.robust.combine import Sum
from tessera.server.secure.bounds import Bounds

N_VIEWS, N_ITEMS, DIM = 7, 3650, 64
EVERYBODY = Policy(lambda keys, people, beside: None, people=1)
SETTINGS = Settings.model_validate({"name": "secure", "data": {"folder": "none", "kind": "movielens"}})
ROUND = Task("train", "secure", 1, (), tuple("abcdefg"), "", DeviceSettings.of(SETTINGS))
SHORT = replace(ROUND, components=tuple(map(tuple, start(N_VIEWS).tolist())))
PEOPLE = 5
DEVICE, SERVER, UP, DOWN, TRIPS = "device, CPU s", "server, CPU s", "device, kB up", "device, kB down", "trips"
FIGURES = (DEVICE, SERVER, UP, DOWN, TRIPS)


def main() -> None:
    """Measure each number of nodes, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 64, 1000])
    parser.add_argument("--lost", type=float, default=0.3)
    parser.add_argument("--groups", type=int, default=4, help="groups that are simulated at most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plain(3, 0.0)  # what is imported late is no part of a round
    rows = []
    for n in arguments.nodes:
        n_groups = len(group_sizes(n, USUAL))
        simulated = min(n_groups, arguments.groups)
        rows.append({"nodes": n, "groups": n_groups, "plain": plain(n, arguments.lost)})
        for name, task, short in (("masked", ROUND, False), ("short", SHORT, True)):
            rows[-1][name] = masked(n, simulated, task, short, arguments.lost)
        rows[-1]["keys of an epoch"] = epoch(n, simulated)
    print("| nodes | |" + " | ".join(FIGURES) + " |\n" + "|---" * (2 + len(FIGURES)) + "|")
    for row in rows:
        for name in ("plain", "masked", "short", "keys of an epoch"):
            print(f"| {row['nodes']} | {name} | " + " | ".join(f"{row[name][one]:.4g}" for one in FIGURES) + " |")
    print(json.dumps(rows))


@dataclass
class Bill:
    """What something costs: CPU seconds of all devices and of the server, and bytes of one device."""

    device: float = 0.0
    server: float = 0.0
    up: int = 0
    down: int = 0
    devices: int = 0

    @contextmanager
    def clock(self, side: str) -> Iterator[None]:
        """Add the CPU seconds of what happens within it to a side's."""
        started = process_time()
        yield
        setattr(self, side, getattr(self, side) + process_time() - started)

    def figures(self, times: float, trips: int) -> dict[str, float]:
        """As they are shown; the server's for so many times what was simulated."""
        found = (self.device / max(self.devices, 1), self.server * times, self.up / 1e3, self.down / 1e3, float(trips))
        return dict(zip(FIGURES, found, strict=True))


def gradients(seed: int) -> dict[str, Tensor]:
    """A device's: those of all views by what it was shown nearly coincide."""
    generator = torch.Generator().manual_seed(seed)
    shares = 1 + 0.05 * torch.rand(N_VIEWS, 1, 1, generator=generator)
    views, history = torch.randn(2, N_ITEMS, DIM, generator=generator) * 1e-3
    return {VIEWS: views * shares, HISTORY: history}


def answers(n: int, lost: float) -> Iterator[tuple[int, Update]]:
    """The updates of those of n devices that answer, by their place."""
    for place in range(int(n * lost), n):
        yield place, Update(gradients(place), float(PEOPLE), MetricSums({"users": float(PEOPLE), "loss": 1.0}))


def plain(n: int, lost: float) -> dict[str, float]:
    """Each device's answer is read and added by itself."""
    bill, total = Bill(), Sum()
    for _, update in answers(n, lost):
        with bill.clock("device"):
            content = pack_update(update)
        with bill.clock("server"):
            total.add(unpack_update(content))
        bill.devices, bill.up = bill.devices + 1, array_bytes(content)
    return bill.figures(1.0, 1)


def masked(n: int, simulated: int, task: Task, short: bool, lost: float) -> dict[str, float]:
    """A round in secure sums: answers under masks, and then what takes the masks off their sums."""
    bill, projection, bounds = Bill(), Projection.of(task), Bounds()
    of_one = gradients(0) if projection is None else projection.project(gradients(0))
    bounds.learn([Update({name: 4 * value for name, value in of_one.items()})])
    tables = bounds.tables({name: value.shape for name, value in of_one.items()}, float(PEOPLE), short)
    task, total = replace(task, masking=Masking(0, (0,), tables)), Sum()
    sizes = group_sizes(n, USUAL)
    for size in sizes[:simulated]:
        group, devices = together(size)
        agreed = terms(task, "", {})
        ask = group.ask(0, agreed.task, agreed.tensors, agreed.layout)
        there = list(answers(size, lost))
        for place, update in there:
            with bill.clock("device"):
                own = terms(task, "", {})
                along = replace(update, gradients=projection.project(update.gradients)) if projection else update
                upload = devices[place].mask(0, own.task, own.tensors, to_values(along, own), own.layout, place)
                content = pack_update(Update().put(MASKED, (upload,)))
            with bill.clock("server"):
                (taken,) = unpack_update(content, [MASKED])[MASKED]
                ask.add(taken)
            bill.up = array_bytes(content)
        with bill.clock("server"):
            request = ask.request().write()
        for place, _ in there:
            with bill.clock("device"):
                reply = devices[place].unmask(UnmaskRequest.read(request)).write()
            ask.take(UnmaskReply.read(reply))
        with bill.clock("server"):
            found = ask.result()
            total.add(of_values(found.values, agreed))
        bill.up, bill.down, bill.devices = bill.up + len(reply), len(request), bill.devices + len(there)
    answered = sum(size - int(size * lost) for size in sizes[:simulated])
    assert total.total().weight == PEOPLE * answered
    return bill.figures(len(sizes) / simulated, 2)


def together(n: int) -> tuple[SecureGroup, Sequence[SecureDevice]]:
    """A group of n devices that have shared keys for one ask, and these in the order of the roster."""
    devices = announced(n, 1)
    group = SecureGroup(roster_of(devices))
    for device in devices:
        group.take_shares(device.share(group.roster))
    for place, delivery in group.deliveries().items():
        devices[place].receive(delivery)
    return group, devices


def announced(n: int, asks: int) -> list[SecureDevice]:
    """Devices that have announced keys for so many asks, in the order of their roster."""
    request = KeysRequest("secure", 0, asks)
    devices = [
        SecureDevice.announce(request, PEOPLE, ec.generate_private_key(ec.SECP384R1()), EVERYBODY) for _ in range(n)
    ]
    members = roster_of(devices).members
    return sorted(devices, key=lambda device: members.index(device.announcement))


def roster_of(devices: Sequence[SecureDevice]) -> Roster:
    """The roster of devices that are one group."""
    (roster,) = make_rosters([device.announcement for device in devices], len(devices) if len(devices) > 8 else 8)
    return roster


def epoch(n: int, simulated: int) -> dict[str, float]:
    """What the keys of an epoch cost: they are announced, shared out and handed on once for all its asks."""
    bill, sizes = Bill(), group_sizes(n, USUAL)
    for size in sizes[:simulated]:
        with bill.clock("device"):
            devices = announced(size, EPOCH)
        written = [device.announcement.write() for device in devices]
        with bill.clock("server"):
            for announcement in map(Announcement.read, written):
                check_announcement(announcement, devices[0].announcement.request)
            group = SecureGroup(roster_of(devices))
            roster = group.roster.write()
        for device in devices:
            with bill.clock("device"):
                shares = device.share(Roster.read(roster)).write()
            with bill.clock("server"):
                group.take_shares(Shares.read(shares))
        with bill.clock("server"):
            deliveries = {place: delivery.write() for place, delivery in group.deliveries().items()}
        for place, delivery in deliveries.items():
            with bill.clock("device"):
                devices[place].receive(Delivery.read(delivery))
        bill.devices += size
        bill.up, bill.down = len(written[0]) + len(shares), len(roster) + len(deliveries[0])
    return bill.figures(len(sizes) / simulated, 3)


if __name__ == "__main__":
    main()
