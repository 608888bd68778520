"""python -m tessera.benchmarks.secure_core [--nodes 10 16 64] [--lost 0.3]

Measures what secure sums cost a device and the server of one group beside the work itself, for gradients [7, 3650, 64].

No process and no network: the messages of `tessera.common.secure` are made and handed over. CPU seconds on one thread; those of
the server are for the whole group, of which a share is lost before it uploads. Ends with one line of JSON.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from cryptography.hazmat.primitives.asymmetric import ec

from tessera.common.secure.device import SecureDevice
from tessera.common.secure.fixed_point import Spec
from tessera.common.secure.group import SecureGroup
from tessera.common.secure.messages import EPOCH, KeysRequest
from tessera.common.secure.roster import Policy, check_announcement, make_rosters

LAYOUT = (Spec("views", (7, 3650, 64), "table", 1.0), Spec("weight", (), "scalar", 1e4))
EVERYBODY = Policy(lambda keys, beside: None, people=1)


def main() -> None:
    """Measure each size of group, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[10, 16, 64])
    parser.add_argument("--lost", type=float, default=0.3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = [{"devices": float(n), **epoch(n), **ask(n, arguments.lost)} for n in arguments.nodes]
    for name in figures[0]:
        print(f"{name:32}", *(f"{figure[name]:12.4g}" for figure in figures))
    print(json.dumps(figures))


class Clock:
    """CPU seconds by what they were for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, among: int = 1) -> Iterator[None]:
        """Add what happens within it, shared out among so many."""
        started = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + (time.process_time() - started) / among


def announced(n: int, asks: int) -> list[SecureDevice]:
    """Devices that have announced keys for so many asks, in the order of their roster."""
    request = KeysRequest("speed", 0, asks)
    devices = [SecureDevice.announce(request, 5, ec.generate_private_key(ec.SECP384R1()), EVERYBODY) for _ in range(n)]
    (roster,) = make_rosters([device.announcement for device in devices], 64)
    return sorted(devices, key=lambda device: roster.members.index(device.announcement))


def epoch(n: int) -> dict[str, float]:
    """What the keys of an epoch cost: measured on the first device, which is like the others."""
    clock = Clock()
    with clock("device: keys of an epoch, s", n):
        devices = announced(n, EPOCH)
    with clock("server: keys of an epoch, s"):
        for device in devices:
            check_announcement(device.announcement, device.announcement.request)
        (roster,) = make_rosters([device.announcement for device in devices], 64)
    with clock("device: shares of an epoch, s"):
        shares = devices[0].share(roster)
    written = {
        "announcement up": devices[0].announcement.write(),
        "roster down": roster.write(),
        "shares up": shares.write(),
    }
    return clock.seconds | {f"{name}, kB": len(content) / 1e3 for name, content in written.items()}


def ask(n: int, lost: float) -> dict[str, float]:
    """What one ask costs."""
    clock, devices = Clock(), announced(n, 1)
    (roster,) = make_rosters([device.announcement for device in devices], 64)
    group = SecureGroup(roster)
    for device in devices:
        group.take_shares(device.share(roster))
    for place, delivery in group.deliveries().items():
        devices[place].receive(delivery)
    answering = devices[int(n * lost) :]
    values = {"views": torch.rand(LAYOUT[0].shape) * 2 - 1, "weight": torch.tensor(3.0)}
    total = group.ask(0, b"task", b"tensors", LAYOUT)
    for device in answering:
        with clock("device: masks, s", len(answering)):
            upload = device.mask(0, b"task", b"tensors", values, LAYOUT, device.place)
        with clock("server: adding up, s"):
            total.add(upload)
    asked = total.request()
    for device in answering:
        with clock("device: unmasking, s", len(answering)):
            reply = device.unmask(asked)
        total.take(reply)
    with clock("server: unmasking, s"):
        found = total.result()
    assert float(found.values["weight"]) == 3.0 * len(answering)
    sizes = {"upload up": len(upload.write()), "unmasking up": len(reply.write())}
    return clock.seconds | {f"{name}, kB": size / 1e3 for name, size in sizes.items()}


if __name__ == "__main__":
    main()
