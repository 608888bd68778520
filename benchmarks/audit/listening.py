"""Carries out a run in this process, and hears all of its devices' answers that the server could read.

The server is ours, and passes on what it makes of each message: the update of one device or, under masks, the sum of a group
and whatever travelled beside the masks. Who attacks by this notices when more becomes readable than should be.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

from tessera.client.app import device_app
from tessera.client.owner.policy import Policy, write_policy
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.errors import TesseraError
from tessera.common.protocol.messages import Kind
from tessera.common.protocol.updates import Update
from tessera.common.utils import counter_rng
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.executors.run import make_job
from tessera.server.app import secure_sums
from tessera.server.dispatch import Dispatcher
from tessera.server.live.pace import Pace
from tessera.server.nodes.request import Asked, Request
from tessera.server.rounds import run_rounds
from tessera.server.run_folder import RunFolder
from tessera.server.secure.exchange import Exchange
from tessera.server.secure.sums import GroupSum, MaskedAnswers, SecureSums
from tessera.server.strategies import make_strategy


@dataclass(frozen=True)
class Heard:
    """An answer that the server can read: of whom it is the sum, and to what."""

    nodes: frozenset[int]
    kind: Kind
    round: int
    update: Update


Ear = Callable[[Heard], None]


class ListeningDispatcher(Dispatcher):
    """The server's own way to its devices, which also tells an `ear` what comes."""

    ear: Ear

    def _fitting(self, content: RecordDict, asked: Asked, request: Request) -> Update:
        update = super()._fitting(content, asked, request)
        if update.gradients or update.counts:
            self.ear(Heard(frozenset([asked.node]), asked.task.kind, asked.task.round, update))
        return update

    def _unmask(self, secure: SecureSums, masked: MaskedAnswers, request: Request) -> None:
        super()._unmask(secure, _Unmasking(masked, request.task.round, self.ear), request)  # type: ignore[arg-type]


@dataclass
class _Unmasking:
    """Masked answers whose sums are told as they are read."""

    masked: MaskedAnswers
    round: int
    ear: Ear

    def unmask(self, exchange: Exchange) -> dict[Kind, list[GroupSum]]:
        sums = self.masked.unmask(exchange)
        for kind, groups in sums.items():
            for group in groups:
                if group.update is not None:
                    self.ear(Heard(frozenset(group.nodes), kind, self.round, group.update))
        return sums


@dataclass(frozen=True)
class Listened:
    """A run that was listened to: its devices' folders, and why it could not go on, if it could not."""

    devices: Sequence[Path]
    failure: str = ""


def listen(
    settings: Settings,
    dataset: Path,
    folder: Path,
    ear: Ear,
    policy: Policy | None = None,
    grid: type[InlineGrid] = InlineGrid,
) -> Listened:
    """Carry out a run of `settings` below `folder`. Devices have an owner with a `policy` where one is given.

    What of a run ends it before its time, such as a refusal of all devices, is told in the outcome.
    """
    job = make_job(settings, dataset, folder, resume=False, overwrite=False)
    for device in job.devices if policy else ():
        write_policy(device, policy or Policy())
    run = RunFolder.create(job.run_dir, settings)
    flowers = grid(device_app(job.devices[0].parent), len(job.devices))
    dispatcher = ListeningDispatcher(flowers, settings.federation, secure_sums(flowers, settings, run.run))
    dispatcher.ear = ear
    items = load_catalogue(dataset)
    try:
        run_rounds(dispatcher, make_strategy(settings, items, dataset), settings, items, run, Pace(settings, run.path))
    except TesseraError as error:
        return Listened(job.devices, str(error))
    return Listened(job.devices)


def changed(settings: Settings, **groups: Any) -> Settings:
    """The settings with changes, by group."""
    content = settings.model_dump()
    for name, change in groups.items():
        content[name] = {**content.get(name, {}), **change} if isinstance(change, dict) else change
    return Settings.model_validate(content)


def some_people(dataset: Path, out: Path, n: int, seed: int) -> Path:
    """Write a dataset with `n` of the people of another, drawn by seed; all where there are fewer."""
    catalogue = load_catalogue(dataset)
    people = load_interactions(dataset, len(catalogue))
    draws = counter_rng.uniform(counter_rng.key("audit", seed), counter_rng.user_keys(people.users))
    catalogue.save(out)
    people.take(draws.argsort()[:n].sort().values.numpy()).save(out)
    (out / "dataset.json").write_bytes((dataset / "dataset.json").read_bytes())
    return out
