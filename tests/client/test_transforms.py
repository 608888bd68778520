"""The steps between an algorithm and the wire: in order, and without loss of what they do not know."""

from dataclasses import dataclass, replace

import pytest
import torch

from tessera.client import cohort
from tessera.client.per_person.gradients import PersonUpdates
from tessera.client.per_person.training import CohortTraining
from tessera.client.transforms import Clip, Encode, Noise, Origin, Stage, Transforms, transforms
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.parts import TensorSums
from tessera.common.protocol.projection import Projection, start
from tessera.common.protocol.updates import Update
from tests.support.catalogues import small_settings, small_split

ORIGIN = Origin(seed=0, round=1, users=("anna", "bert"), simulated=True)
STRANGE = TensorSums("strange", "the strange {!r}")
"""A part of some strategy that no step knows."""


@pytest.mark.parametrize("step", [lambda update, origin: Clip(0.5)(PersonUpdates.of(update), origin).total(),
                                  Noise(0.1), Encode("int8"), Encode("4%")])  # fmt: skip
def test_every_step_changes_the_gradients_and_keeps_all_else(step) -> None:  # type: ignore[no-untyped-def]
    own = {"x": torch.arange(3.0)}
    given = Update({"views": torch.randn(2, 9, 8)}, 3.0, MetricSums({"loss": 1.5}), {"counts": torch.ones(4)}).put(
        STRANGE, own
    )
    before = given.gradients["views"].clone()
    got = step(given, ORIGIN)
    assert torch.equal(given.gradients["views"], before), "what came is as it was"
    assert got.gradients.keys() != before or not torch.equal(got.gradients["views"], before)
    assert replace(got, gradients={}) == replace(given, gradients={})
    assert got[STRANGE] is own


def test_the_settings_give_the_steps_in_order() -> None:
    assert [step.name for step in transforms(small_settings()).steps] == ["encode"]
    private = small_settings(privacy={"clip": 1.0, "noise_multiplier": 0.5})
    assert [step.name for step in transforms(private).steps] == ["clip", "noise", "encode"]
    steps = transforms(private, Projection(start(2), None))
    assert [step.name for step in steps.steps] == ["clip", "project", "noise", "encode"]


def test_only_what_travels_is_noised() -> None:
    given = Update({"views": torch.randn(2, 9, 8), "history": torch.randn(9, 8)}, 3.0)
    private = small_settings(privacy={"clip": 1.0, "noise_multiplier": 0.5})
    noised = transforms(private, Projection(start(2), None)).apply("people", given, ORIGIN)
    assert {name: tuple(value.shape) for name, value in noised.gradients.items()} == {
        "views": (1, 9, 8),
        "history": (9, 8),
    }


@pytest.mark.parametrize(
    "steps", [[Noise(1.0), Clip(1.0)], [Encode("float32"), Clip(1.0)], [Encode("float32"), Noise(1.0)]]
)
def test_a_step_that_comes_too_late_is_refused(steps: list) -> None:
    """Noise before the clip would be cut with the gradient, and what is encoded cannot be clipped."""
    with pytest.raises(ValueError, match="not in the order person, people, device"):
        Transforms(steps)


@dataclass
class Note:
    """Notes whom it is given, and changes nothing."""

    stage: Stage
    seen: list
    name = "note"

    def __call__(self, update, origin: Origin):  # type: ignore[no-untyped-def]
        weight = update.rest.weight if isinstance(update, PersonUpdates) else update.weight
        self.seen.append((self.stage, origin.users, weight))
        return update


def test_each_stage_sees_its_own_people() -> None:
    settings, split, seen = small_settings(), small_split(3, 30), []
    sent = {"views": torch.randn(2, 30, 8), "history": torch.randn(30, 8)}
    state = cohort.start_state(split.users, settings.local, sent["views"], 0)
    algorithm = CohortTraining(sent, settings.local, seed=0, round=1)
    steps = Transforms([Note("person", seen), Note("people", seen), Note("device", seen)])
    moved, update = steps.train(algorithm, state, split, Origin(0, 1))
    assert seen == [("person", split.users, 3.0), ("people", split.users, 3.0)]
    plain_state, plain = Transforms([]).train(algorithm, state, split, Origin(0, 1))
    assert moved.users == plain_state.users
    assert update.weight == plain.weight
    torch.testing.assert_close(update.gradients["views"], plain.gradients["views"])
