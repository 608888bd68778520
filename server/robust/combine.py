"""Makes one update out of those of several units, as they come in.

A *unit* is what the server sees one update of: a node, or a group of nodes under secure sums.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from tessera.common.protocol.updates import Update


class Combiner(ABC):
    """What becomes of the updates of units, one after the other.

    Laws: the order of the units changes nothing (floating-point sums: to rounding); everything of an update but its gradients
    is added up.
    """

    @abstractmethod
    def add(self, update: Update) -> None:
        """Take up a unit's update."""

    @abstractmethod
    def total(self) -> Update:
        """What all that were taken up make together."""


class Sum(Combiner):
    """The plain sum: in memory there is one update, however many units there are."""

    def __init__(self) -> None:
        self._total = Update()

    def add(self, update: Update) -> None:
        """Add it."""
        self._total += update

    def total(self) -> Update:
        """The sum so far."""
        return self._total


class TensorCombiner(ABC):
    """What becomes of one tensor of units, one after the other. Law: the order of the units changes nothing, to rounding."""

    @abstractmethod
    def add(self, gradient: Tensor, weight: float) -> None:
        """Take up a unit's tensor; its weight is above 0."""

    @abstractmethod
    def total(self) -> Tensor:
        """What those that were taken up, one at least, make together: as large as the sum, for the sum of their weights."""


class Defended(Combiner):
    """Gradients are combined tensor by tensor, each by an object that `make` gives for it; everything else is added up.

    A unit without weight has no say in the gradients, and one that weighs more than `heaviest` no more than that.
    """

    def __init__(self, make: Callable[[], TensorCombiner], heaviest: float = math.inf) -> None:
        self.make, self.heaviest = make, heaviest
        self._rest, self._tensors = Sum(), dict[str, TensorCombiner]()
        self._total: Update | None = None

    def add(self, update: Update) -> None:
        """Take it up."""
        self._total = None
        weight = min(update.weight, self.heaviest)
        self._rest.add(replace(update, gradients={}, weight=weight))
        for name, gradient in update.gradients.items() if weight > 0 else ():
            own = gradient if weight == update.weight else gradient * (weight / update.weight)
            self._tensors.setdefault(name, self.make()).add(own, weight)

    def total(self) -> Update:
        """What came so far; made once, until more comes."""
        if self._total is None:
            gradients = {name: tensor.total() for name, tensor in self._tensors.items()}
            self._total = replace(self._rest.total(), gradients=gradients)
        return self._total
