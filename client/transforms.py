"""Clips, noises and encodes an update before it leaves a device: one ordered list of small steps around the algorithm.

Each step has its stage, and the list is in the order of the stages:
- person: each person's gradients by themselves, before they are added to anybody's (clipping);
- people: the sum over the people who are trained at once (projection on few directions of the views, and then noise, so that
  only what travels is noised: n_components tables and not n_views);
- device: all that the device sends, at the end (number formats).
The algorithm, such as `tessera.client.per_person.training.CohortTraining`, knows nothing of them. A step keeps the parts of an
update that it does not know.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, cast, get_args

import torch

from tessera.client.per_person.gradients import PersonUpdates
from tessera.client.privacy import clipped, noised, secret_normal
from tessera.client.private_state import PrivateState, together
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Codec
from tessera.common.data.interactions import Split
from tessera.common.privacy.quantile import half, reach
from tessera.common.protocol.codecs import encode, rotation
from tessera.common.protocol.projection import Projection
from tessera.common.protocol.updates import Update
from tessera.common.utils import counter_rng

Stage = Literal["person", "people", "device"]


class Algorithm(Protocol):
    """Trains people on from their private state."""

    def together(self, state: PrivateState, people: Split) -> tuple[PrivateState, Update]:
        """All at once: their moved state, and the sum of their updates."""
        ...

    def apart(self, state: PrivateState, people: Split) -> Iterator[tuple[PrivateState, PersonUpdates]]:
        """Some at a time, in order: their moved states, and their updates before they are added up."""
        ...


@dataclass(frozen=True)
class Origin:
    """Where an update comes from: the run's seed, the round, the people it is of, and whether their device is simulated."""

    seed: int
    round: int
    users: tuple[str, ...] = ()
    simulated: bool = False


class Transform(Protocol):
    """One step on sums, of the stages people and device."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def stage(self) -> Stage:
        """What it is applied to."""
        ...

    def __call__(self, update: Update, origin: Origin) -> Update:
        """The update as it goes on; nothing of the one that came is changed."""
        ...


class PersonTransform(Protocol):
    """One step of the stage person."""

    @property
    def name(self) -> str:
        """What it is called in messages."""
        ...

    @property
    def stage(self) -> Literal["person"]:
        """What it is applied to: each person's gradients."""
        ...

    def __call__(self, updates: PersonUpdates, origin: Origin) -> PersonUpdates:
        """The updates as they go on; nothing of those that came is changed."""
        ...


@dataclass(frozen=True)
class Clip:
    """Bounds the length of each person's gradients, all tensors together, by `bound`."""

    bound: float
    half: float = 0.0
    """What a person says of whether theirs were; 0: nothing."""
    name = "clip"
    stage: Literal["person"] = "person"

    def __call__(self, updates: PersonUpdates, origin: Origin) -> PersonUpdates:
        """Scale the gradients down."""
        return clipped(updates, self.bound, self.half)


@dataclass(frozen=True)
class Project:
    """Keeps what the gradients say along public directions of the views. It is linear, and makes nothing longer: the sum is as
    good as each person's by itself, and stays within what clipping bounded."""

    projection: Projection
    name = "project"
    stage: Stage = "people"

    def __call__(self, update: Update, origin: Origin) -> Update:
        """Project them."""
        return replace(update, gradients=self.projection.project(update.gradients))


@dataclass(frozen=True)
class Noise:
    """Adds to the gradients of n people the sum of n normal noises with standard deviation `deviation`, drawn once."""

    deviation: float
    name = "noise"
    stage: Stage = "people"

    def __call__(self, update: Update, origin: Origin) -> Update:
        """Draw, and add; a simulation's draws can be repeated."""
        key = counter_rng.key("noise", origin.seed, origin.round, *origin.users)
        repeatable = partial(torch.randn, generator=torch.Generator().manual_seed(key))
        draw = repeatable if origin.simulated else secret_normal
        return noised(update, self.deviation * math.sqrt(len(origin.users)), draw)


@dataclass(frozen=True)
class Encode:
    """Writes the gradients in the number format of the wire."""

    codec: Codec
    name = "encode"
    stage: Stage = "device"

    def __call__(self, update: Update, origin: Origin) -> Update:
        """Write them."""
        return replace(update, gradients=encode(update.gradients, self.codec, rotation(origin.seed, origin.round)))


class Transforms:
    """Steps in order. Raises `ValueError` where one comes after a step of a later stage: it would act on something else."""

    def __init__(self, steps: Sequence[Transform | PersonTransform]) -> None:
        stages = [get_args(Stage).index(step.stage) for step in steps]
        if stages != sorted(stages):
            raise ValueError(
                f"{', '.join(step.name for step in steps)} are not in the order {', '.join(get_args(Stage))}"
            )
        self.steps = tuple(steps)
        self._person = [cast(PersonTransform, step) for step in steps if step.stage == "person"]
        self._sums = [step for step in steps if step.stage != "person"]

    def apply(self, stage: Stage, update: Update, origin: Origin) -> Update:
        """A sum after all steps of a stage."""
        for step in self._sums:
            update = step(update, origin) if step.stage == stage else update
        return update

    def train(
        self, algorithm: Algorithm, state: PrivateState, people: Split, origin: Origin
    ) -> tuple[PrivateState, Update]:
        """Train people, their gradients apart only where a step looks at each person's: their state, and their sum."""
        if not self._person:
            moved, total = algorithm.together(state, people)
        else:
            parts, total = [], Update()
            for own, updates in algorithm.apart(state, people):
                parts.append(own)
                for step in self._person:
                    updates = step(updates, replace(origin, users=own.users))
                total += updates.total()
            moved = together(parts)
        return moved, self.apply("people", total, replace(origin, users=people.users))


def transforms(
    settings: DeviceSettings, projection: Projection | None = None, last: Transform | None = None
) -> Transforms:
    """The steps that a run's settings, and a round's projection, ask for; `last` stands in the place of the wire's format."""
    clip, multiplier = settings.privacy.clip, settings.privacy.noise_multiplier
    steps: list[Transform | PersonTransform] = []
    if clip:
        steps.append(Clip(clip, half(settings.privacy)))
    if projection:
        steps.append(Project(projection))
    if multiplier and not settings.privacy.distributed:  # that is added under the masks, by `tessera.client.secure`
        steps.append(Noise(multiplier * reach(settings.privacy)))
    return Transforms([*steps, last or Encode(settings.wire.gradients)])
