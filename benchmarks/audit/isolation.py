"""Asks a device what sets one person apart from others, as a hostile server may, and counts what is answered.

The device is real: its own app, its own policy file with the defaults, its own ledger. It answers an honest server first.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from tessera.benchmarks.audit.findings import Finding, Size
from tessera.benchmarks.audit.listening import changed, some_people
from tessera.client.app import answer
from tessera.client.owner.policy import Policy, write_policy
from tessera.client.owner.rules import Refusal
from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Settings
from tessera.common.errors import RunError
from tessera.common.protocol.messages import BASIS, COUNTS, HISTORY, VIEWS, Kind, Task, pack_task, refused
from tessera.common.protocol.tensors import Tensors, content_hash
from tessera.deploy.provisioning.partition import partition

PEOPLE = Policy().people
"""People on the device that is asked, so that it answers an honest server without masks."""
SAME = 50
"""How often the same is asked."""
WIDTH = 5
"""Columns of a basis that so many people answer to."""
EVERYTHING: tuple[Kind, ...] = ("item_statistics", "power", "train", "evaluate", "baselines")


class HostileServer:
    """Asks one device whatever it likes, in a run of the settings."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        client = RecommendationClient(folder)
        self.catalogue, self.n_items = client.catalogue().sha256, len(client.catalogue())
        self.counts = torch.from_numpy(client.split(DeviceSettings.of(settings)).counts()).float()

    def ask(self, kind: Kind, round: int = 1, inputs: Tensors | None = None, draw: int = 1, **changes: Any) -> bool:
        """Whether it answers to settings with `changes`, on views that are drawn by `draw`; those of 0 are zero.

        Raises `RunError` where it does not for another reason than its policy.
        """
        dim, works = self.settings.views.dim, kind in ("train", "evaluate")
        generator = torch.Generator().manual_seed(draw)
        table = torch.randn(3, self.n_items, dim, generator=generator) * bool(draw)
        tensors = {VIEWS: table[:2], HISTORY: table[2]} if works else None
        asked = DeviceSettings.of(changed(self.settings, **changes))
        name = content_hash(tensors) if tensors else ""
        task = Task(kind, "audit", round, (), ("one", "two"), self.catalogue, asked, name)
        reply = answer(pack_task(task, tensors, inputs), lambda settings: RecommendationClient(self.folder))
        said = refused(reply)
        if said and said.kind not in get_args(Refusal):
            raise RunError(
                f"{kind}: the device could not do what is asked, so that refusals show nothing: {said.reason}"
            )
        return said is None

    def multiply(self, basis: Tensor) -> bool:
        """Whether it answers with X^T X times a basis."""
        return self.ask("power", 0, {BASIS: basis})


Trial = Callable[[HostileServer], Iterator[bool]]
"""Asks, one after the other, and says of each whether it was answered."""


def _cold_users(server: HostileServer) -> Iterator[bool]:
    for number in range(10):
        yield server.ask("item_statistics", 0, data={"cold_users": 0.1 * number or 0.95})


def _other_draws(server: HostileServer) -> Iterator[bool]:
    """Another seed, fraction or split than the run began with."""
    for number in range(1, 6):
        yield server.ask("item_statistics", 2, seed=server.settings.seed + number)
        yield server.ask("train", 2, fraction=0.1 * number)
        yield server.ask("evaluate", 2, data={"split": "leave-one-out", "cold_items": 0.04 * number})


def _repeats(server: HostileServer) -> Iterator[bool]:
    for _ in range(SAME):
        yield server.ask("train", 3)


def _many_views(server: HostileServer) -> Iterator[bool]:
    """Other views again and again in one round, to compare the answers."""
    for number in range(1, SAME + 1):
        yield server.ask("train", 4, draw=number)


def _zero_views(server: HostileServer) -> Iterator[bool]:
    yield server.ask("train", 5, draw=0)
    yield server.ask("evaluate", 5, {COUNTS: server.counts}, draw=0)


def _identity_columns(server: HostileServer) -> Iterator[bool]:
    """Bases that ask for single items, for counts of all, for what is scaled up, or for as many columns as there are people."""
    n = server.n_items
    yield server.multiply(torch.ones(n, 1))
    yield server.multiply(torch.full((n, 1), n**-0.5) * 30)
    for start in range(0, min(n, 20), WIDTH):
        yield server.multiply(torch.eye(n)[:, start : start + WIDTH])
    yield server.multiply(_orthonormal(n, PEOPLE))


def _crafted_counts(server: HostileServer) -> Iterator[bool]:
    """Counts by which an item is warm or cold as a bit of its number is: what is held out comes out bit by bit."""
    server.ask("evaluate", 6, {COUNTS: server.counts})
    for bit in range((server.n_items - 1).bit_length()):
        crafted = server.counts + (torch.arange(server.n_items) >> bit & 1)
        yield server.ask("evaluate", 6 + bit, {COUNTS: crafted})


def _useless_noise(server: HostileServer) -> Iterator[bool]:
    for clip in (1e30, 1e6, 101.0):
        noise = {"clip": clip, "noise_multiplier": 1e-30}
        yield server.ask("train", 1, local={"weighting": "users"}, views={"spectral_rounds": 0}, privacy=noise)


def _kinds(server: HostileServer) -> Iterator[bool]:
    """All that its owner has not allowed, who allows training alone."""
    write_policy(server.folder, Policy(answers=("train",)))
    basis = _orthonormal(server.n_items, WIDTH)
    for kind in EVERYTHING:
        if kind != "train":
            yield server.ask(kind, 7, {BASIS: basis, COUNTS: server.counts})


def _alone(server: HostileServer) -> Iterator[bool]:
    """Everything, of one person in no secure sum."""
    for kind in EVERYTHING:
        yield server.ask(kind, 1, {BASIS: _orthonormal(server.n_items, WIDTH), COUNTS: server.counts})


def _orthonormal(n: int, width: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, width, generator=torch.Generator().manual_seed(0))).Q


TRIALS: dict[str, tuple[Trial, int]] = {
    "people left out by data.cold_users": (_cold_users, 0),
    "other seed, fraction or split within a run": (_other_draws, 0),
    "the same ask, 50 times": (_repeats, Policy().max_repeats),
    "50 other views in one round": (_many_views, 3),
    "views that are zero": (_zero_views, 0),
    "bases of identity columns and of ones": (_identity_columns, 0),
    "crafted counts in evaluations": (_crafted_counts, 0),
    "clip 1e30 and noise 1e-30": (_useless_noise, 0),
    "kinds of ask outside the policy": (_kinds, 0),
}
"""What is tried, each with how many answers are allowed: a server that lost a reply may ask again."""
FIRST = (_cold_users, _useless_noise)
"""Trials with what a run begins with: later they would be refused as other settings."""
ALONE = "one person asked in no secure sum"


def attack_by_asking(settings: Settings, dataset: Path, seed: int, size: Size) -> list[Finding]:
    """Try everything, each on a device that has answered an honest server. Raises `RunError` where it has not: then refusals
    show nothing."""
    folder = Path(tempfile.mkdtemp())
    try:
        people = some_people(dataset, folder / "people", PEOPLE, seed)
        own = changed(settings, seed=seed, data={"cold_users": 0.0, "cold_items": 0.0}, fraction=1.0)
        own = changed(
            own, privacy={"clip": 0.0, "noise_multiplier": 0.0}, wire={"views": "float32", "gradients": "float32"}
        )
        found = [_tried(ALONE, _alone, 0, HostileServer(own, partition(people, folder / "alone", PEOPLE)[0]))]
        for name, (trial, allowed) in TRIALS.items():
            server = HostileServer(own, partition(people, folder / name.replace(" ", "-"), 1)[0])
            if trial not in FIRST and not server.ask("item_statistics", 0):
                raise RunError(f"{name}: a device of {PEOPLE} people does not answer what an honest server asks")
            found.append(_tried(name, trial, allowed, server))
        return found
    finally:
        shutil.rmtree(folder)


def _tried(name: str, trial: Trial, allowed: int, server: HostileServer) -> Finding:
    answered = [float(one) for one in trial(server)]
    return Finding(name, "answers", sum(answered), float(len(answered)), float(allowed))
