"""Holds nodes to what they said of their people: nobody weighs, counts or finds more than people can.

What a node says of its people in its item statistics, it may exaggerate as a whole; from then on it is held to it.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.common.metrics.names import LARGEST_LOSS, NEW_USERS, TOKEN_LOSS, UNTRAINED
from tessera.common.privacy.quantile import BELOW, half
from tessera.common.protocol.figures import TIED
from tessera.common.protocol.messages import ASPECTS, BASIS, COHESION, COUNTS, GROUP_PEOPLE, GROUP_STATES, Task
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update

ROUNDING = 1e-3
"""By what share a sum over people, in float32, may be beyond its bound."""


class ExaggeratedError(Exception):
    """An update that says more than the people can that it is of."""


@dataclass(frozen=True)
class Claim:
    """How many people a unit says it has to train, and how many training events."""

    users: float
    events: float

    def weight(self, task: Task) -> float:
        """The most that its gradients can weigh."""
        return self.users if task.settings.local.weighting == "users" else self.events

    @property
    def trace(self) -> float:
        """The most that tr(B^T X^T X B) can be for orthonormal B: sum_u |x_u|^2 = sum_u sqrt(|history_u|), by
        Cauchy-Schwarz."""
        return math.sqrt(self.users * self.events)


class Claims:
    """What each unit has said of its people. One that came later is held to the largest of the others."""

    def __init__(self) -> None:
        self._by_unit: dict[Hashable, Claim] = {}

    def hear(self, unit: Hashable, update: Update) -> None:
        """Take up item statistics that were found to be possible."""
        self._by_unit[unit] = Claim(update.sums["users"], update.sums["events"])

    def of(self, unit: Hashable) -> Claim | None:
        """What a unit is held to; None where nobody has said anything yet."""
        return self._by_unit.get(unit) or self.largest(0)

    def largest(self, place: int) -> Claim | None:
        """Of people and of events the largest number that was said, or the one at that `place` below it (0: the largest)."""
        if not self._by_unit:
            return None
        users, events = (
            sorted((getattr(claim, name) for claim in self._by_unit.values()), reverse=True)
            for name in ("users", "events")
        )
        last = min(place, len(users) - 1)
        return Claim(users[last], events[last])


def check_claim(update: Update, task: Task, inputs: Tensors, claim: Claim | None) -> None:
    """Raise `ExaggeratedError` for an answer that no such people can have given, whatever their data; `inputs` went along with
    the task."""
    if task.kind == "item_statistics":
        _check_statistics(update, questions=task.settings.asks_questions)
    elif claim is None:
        return
    elif task.kind == "train":
        _at_most(update.weight, claim.weight(task), "its weight")
        _at_most(update.sums["users"], claim.users, "its number of people")
        if BELOW in update.gradients and not task.settings.privacy.noise_multiplier:
            most = half(task.settings.privacy) * claim.users
            _at_most(float(update.gradients[BELOW].abs().max()), most, "what its people say of the clip")
        _check_cohesion(update.counts.get(COHESION), claim)
        if (groups := update.counts.get(GROUP_PEOPLE)) is not None:
            _at_most(float(groups.clamp(min=0).sum()), claim.users, "its number of people in groups")
            _at_most(-float(groups.min()), 0, "how many fewer than nobody are in a group")
    elif task.kind == "power":
        _check_power(update.counts.get(BASIS), inputs[BASIS], claim)
    elif task.kind == "aspects":
        _check_aspects(update, inputs, claim)
    else:
        _check_scores(update, claim)


def _check_statistics(update: Update, questions: bool) -> None:
    """Each person has an item once at most; people who answer questions have none."""
    users, events, counts = update.sums["users"], update.sums["events"], update.counts.get(COUNTS)
    for part, tied in TIED.items():
        _at_most(update.sums[part], users, f"its number of people with a {part} item")
        _at_most(update.sums[tied], update.sums[part], f"its number of people with a tied {part} item")
    if questions or counts is None:
        return
    if bool((counts < 0).any()):
        raise ExaggeratedError("an item has a negative count")
    _at_most(events, users * len(counts), "its number of events")
    _at_most(float(counts.max()), users, "an item's count")
    _at_most(float(counts.double().sum()), events, "the sum of its counts")


def _check_cohesion(found: Tensor | None, claim: Claim) -> None:
    """Items are as alike as 0 to 1, each person's in each view."""
    if found is None:
        return
    if bool((found < 0).any()):
        raise ExaggeratedError("it says that items are less alike than not at all")
    _at_most(float(found[1].max()), claim.users, "its number of people with two items")
    _at_most(float((found[0] - found[1]).max()), 0, "how much more than wholly alike its people's items are")


def _check_power(product: Tensor | None, basis: Tensor, claim: Claim) -> None:
    """Of Y = X^T X B a row is no longer than there are people who have the item, and B^T Y is symmetric, without negative
    eigenvalues, and of bounded trace."""
    if product is None:
        return
    _at_most(float(product.norm(dim=1).max()), claim.users, "a row of its power iteration")
    inner = basis.double().T @ product.double()
    _at_most(float(inner.trace()), claim.trace, "the trace of its power iteration")
    size = float(inner.abs().max())
    if float((inner - inner.T).abs().max()) > ROUNDING * size:
        raise ExaggeratedError("its power iteration is not that of a symmetric matrix")
    if float(torch.linalg.eigvalsh(inner).min()) < -ROUNDING * size:
        raise ExaggeratedError("its power iteration is not that of people's histories")


def _check_aspects(update: Update, inputs: Tensors, claim: Claim) -> None:
    """A person's S / sqrt(L) is no longer than sqrt(L) times the longest item, and no entry of a step is above its fourth power
    and 1."""
    _at_most(update.sums["users"], claim.users, "its number of people with an event")
    if (found := update.counts.get(GROUP_STATES)) is not None:
        _at_most(float(found.norm(dim=1).max()), 2 * claim.users, "the sum of states of a group")
    for name, found in update.counts.items():
        if name.startswith(ASPECTS) and name in inputs:
            longest = claim.events * float(inputs[name].double().square().sum(1).max())
            bound = longest if name == f"{ASPECTS}spread" else claim.users + 2 * longest + longest**2
            _at_most(float(found.abs().max()), bound, "what its people go by")


def _check_scores(update: Update, claim: Claim) -> None:
    """Each person adds at most 1 to a metric, or what a loss is cut off at. New users, who do not train, are in no claim."""
    _at_most(update.sums["evaluated"], claim.users, "its number of people")
    metrics = update.sums.metrics()
    for name, value in metrics.items():
        known = name.counts and name.group not in (NEW_USERS, UNTRAINED)
        bound = claim.users if known else math.inf if name.counts else metrics.get(name.users, 0.0)
        bound *= LARGEST_LOSS if name.metric == TOKEN_LOSS else 1
        _at_most(value, bound, f"its sum of {name}")


def _at_most(value: float, bound: float, what: str) -> None:
    if value > bound * (1 + ROUNDING):
        raise ExaggeratedError(f"{what} is {value:g}, and its people can make it {bound:g} at most")
