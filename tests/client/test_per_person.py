"""People's gradients told apart equal those of each person trained alone, for every backbone and loss."""

import logging
import math

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.backbones import BackboneInput
from tessera.client.backbones.fedavg import FedAvg
from tessera.client.per_person import training
from tessera.client.per_person.gradients import Outer, PersonGradients, PersonUpdates, Whole
from tessera.client.per_person.training import CohortTraining
from tessera.client.private_state import together
from tessera.client.transforms import Clip, Origin, Transforms
from tessera.common.config.settings import LocalSettings
from tessera.common.data.interactions import Split
from tessera.common.protocol.updates import Update
from tessera.common.registry.backbones import BACKBONES
from tessera.common.registry.losses import LOSSES
from tests.support.backbones import shared_shapes
from tests.support.catalogues import small_split

N_USERS, N_ITEMS, DIM, N_VIEWS = 9, 30, 8, 5
PAIRS = [
    (backbone, loss) for backbone, spec in BACKBONES.known().items() for loss in LOSSES
    if (spec.asks_next or not LOSSES[loss].next_item) and (spec.views_alone or not LOSSES[loss].views_alone)
]  # fmt: skip


def sent(backbone: str) -> dict[str, torch.Tensor]:
    spec = BACKBONES[backbone]
    shapes = {"views": (N_VIEWS, N_ITEMS, DIM), **shared_shapes(backbone, DIM)}
    shapes |= {"history": (N_ITEMS, DIM)} if spec.history else {}
    generator = torch.Generator().manual_seed(0)
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def algorithm(backbone: str, loss: str) -> CohortTraining:
    changes = {"local_epochs": 2, "recency": 0.5, "history_mask": 0.3, "optimizer": "sgd"}
    local = LocalSettings.model_validate({"backbone": backbone, "loss": loss, **changes})
    return CohortTraining(sent(backbone), local, seed=1, round=12)


def start(method: CohortTraining, split: Split):
    return cohort.start_state(split.users, method.settings, method.sent["views"], seed=1)


def alone(method: CohortTraining, split: Split):
    """The naive twin: everybody trained by themselves."""
    state = start(method, split)
    return [method.together(state.take(torch.tensor([u])), split.take(np.array([u]))) for u in range(len(split.users))]


def norm(gradients) -> float:
    return math.sqrt(sum(float((gradient.double() ** 2).sum()) for gradient in gradients.values()))


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(("backbone", "loss"), PAIRS)
def test_clipped_sums_equal_those_of_each_person_alone(
    backbone: str, loss: str, chunk: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "FIRST", chunk)
    method, split = algorithm(backbone, loss), small_split(N_USERS, N_ITEMS)
    each = alone(method, split)
    lengths = [norm(update.gradients) for _, update in each]
    clip = float(np.median(lengths))
    cut = [min(1.0, clip / max(length, 1e-30)) for length in lengths]  # one event alone tells some losses nothing
    wanted = sum(
        (Update({name: g * part for name, g in update.gradients.items()}, update.weight, update.sums)
         for (_, update), part in zip(each, cut, strict=True)), Update(),
    )  # fmt: skip
    moved, found = Transforms([Clip(clip)]).train(method, start(method, split), split, Origin(1, 12))
    assert not caplog.records, "no built-in backbone takes the slow way"
    assert (found.weight, found.sums["users"]) == (wanted.weight, wanted.sums["users"])
    assert found.sums["loss"] == pytest.approx(wanted.sums["loss"], rel=1e-5)
    for name, gradient in wanted.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, rtol=1e-5, atol=1e-5 * clip)
    for name, value in together([own for own, _ in each]).parameters.items():
        torch.testing.assert_close(moved.parameters[name], value, rtol=1e-4, atol=1e-5)


class OwnWay(FedAvg):
    """Reads the views by an operation that nobody noted, beside one that is noted."""

    def scores(self, given: BackboneInput) -> torch.Tensor:
        bent = torch.einsum("ud,gnd->un", given.private["head"], given.sent["views"] ** 2)
        return super().scores(given) + bent


def test_a_backbone_that_goes_its_own_way_is_noticed_and_clipped_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    method, split = algorithm("fedavg", "softmax"), small_split(N_USERS, N_ITEMS)
    monkeypatch.setattr(cohort, "make_backbone", OwnWay)
    each = [norm(update.gradients) for _, update in alone(method, split)]
    with caplog.at_level(logging.WARNING):
        apart = list(method.apart(start(method, split), split))
    assert "backbone fedavg reads views in a way of its own" in caplog.text
    assert [float(updates.norms()) for _, updates in apart] == pytest.approx(each, rel=1e-5)


def test_norms_and_sums_of_factors_are_those_of_what_they_stand_for() -> None:
    """All kinds of terms of one tensor at once, with two rows a person, some of which nearly cancel."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    shape, people = (3, 7, 4), 5
    left, right = draw(2 * people, 7), draw(2 * people, 3, 4)
    terms = (
        Outer(left, right, 1), Outer(left, -right + 1e-3 * draw(2 * people, 3, 4), 1),
        Outer(draw(people, 3), draw(people, 7, 4), 0), Whole(draw(people, *shape)),
    )  # fmt: skip
    written = terms[3].value + torch.einsum("pa,pbc->pabc", terms[2].left, terms[2].right)
    for term in terms[:2]:
        written = written + torch.einsum("rb,rac->rabc", term.left, term.right).view(people, 2, *shape).sum(1)
    nothing = PersonGradients(people, torch.Size(shape))
    gradients = sum((PersonGradients(people, torch.Size(shape), (term,)) for term in terms), nothing)
    factors = draw(people)
    torch.testing.assert_close(gradients.total(factors), torch.tensordot(factors, written, 1), rtol=1e-4, atol=1e-5)
    updates = PersonUpdates({"x": gradients}, Update(), torch.ones(people)).scaled(factors)
    expected = written.double().flatten(1).norm(dim=1) * factors.abs()
    torch.testing.assert_close(updates.norms(), expected, rtol=1e-5, atol=1e-6)
