"""Clips, noises and encodes an update before it leaves a device: one ordered list of small steps around the algorithm.

Each step has its stage, and the list is in the order of the stages:
- person: each person's update by itself, before it is added to anybody's (clipping);
- people: the sum over the people who are trained at once (projection on few directions of the views, and then noise, so that
  only what travels is noised: n_components tables and not n_views);
- device: all that the device sends, at the end (number formats).
The algorithm, such as `tessera.client.cohort.train`, knows nothing of them. A step keeps the parts of an update that it does
not know.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol, get_args

import numpy as np
import torch

from tessera.client.privacy import clipped, noised, secret_normal
from tessera.client.private_state import PrivateState, together
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import Codec
from tessera.common.data.interactions import Split
from tessera.common.protocol.codecs import encode, rotation
from tessera.common.protocol.projection import Projection
from tessera.common.protocol.updates import Update
from tessera.common.utils import counter_rng

Stage = Literal["person", "people", "device"]
Algorithm = Callable[[PrivateState, Split], tuple[PrivateState, Update]]
"""Trains people on from their private state, and returns that state and their additive update."""


@dataclass(frozen=True)
class Origin:
    """Where an update comes from: the run's seed, the round, the people it is of, and whether their device is simulated."""

    seed: int
    round: int
    users: tuple[str, ...] = ()
    simulated: bool = False


class Transform(Protocol):
    """One step."""

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


@dataclass(frozen=True)
class Clip:
    """Bounds the length of a person's gradients, all tensors together, by `bound`."""

    bound: float
    name = "clip"
    stage: Stage = "person"

    def __call__(self, update: Update, origin: Origin) -> Update:
        """Scale the gradients down."""
        return clipped(update, self.bound)


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

    def __init__(self, steps: Sequence[Transform]) -> None:
        stages = [get_args(Stage).index(step.stage) for step in steps]
        if stages != sorted(stages):
            raise ValueError(
                f"{', '.join(step.name for step in steps)} are not in the order {', '.join(get_args(Stage))}"
            )
        self.steps = tuple(steps)

    def apply(self, stage: Stage, update: Update, origin: Origin) -> Update:
        """The update after all steps of a stage."""
        for step in self._of(stage):
            update = step(update, origin)
        return update

    def train(
        self, algorithm: Algorithm, state: PrivateState, people: Split, origin: Origin
    ) -> tuple[PrivateState, Update]:
        """Train people, all at once where no step looks at each person's update, and return what `algorithm` does."""
        if not self._of("person"):
            moved, total = algorithm(state, people)
        else:
            alone, total = [], Update()
            for row, user in enumerate(people.users):
                own, update = algorithm(state.alone(row), people.take(np.array([row])))
                alone.append(own)
                total += self.apply("person", update, replace(origin, users=(user,)))
            moved = together(alone)
        return moved, self.apply("people", total, replace(origin, users=people.users))

    def _of(self, stage: Stage) -> list[Transform]:
        return [step for step in self.steps if step.stage == stage]


def transforms(
    settings: DeviceSettings, projection: Projection | None = None, last: Transform | None = None
) -> Transforms:
    """The steps that a run's settings, and a round's projection, ask for; `last` stands in the place of the wire's format."""
    clip, multiplier = settings.privacy.clip, settings.privacy.noise_multiplier
    steps: list[Transform] = []
    if clip:
        steps.append(Clip(clip))
    if projection:
        steps.append(Project(projection))
    if multiplier:
        steps.append(Noise(multiplier * clip))
    return Transforms([*steps, last or Encode(settings.wire.gradients)])
