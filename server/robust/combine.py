"""Makes one update out of those of several units, as they come in.

A *unit* is what the server sees one update of: a node, or a group of nodes under secure sums.
"""

from abc import ABC, abstractmethod

from tessera.common.protocol.updates import Update


class Combiner(ABC):
    """What becomes of the updates of units, one after the other.

    Laws: the order of the units changes nothing (floating-point sums: to rounding); everything of an update but its gradients
    is added up.
    """

    @abstractmethod
    def add(self, update: Update, people: float = 0.0) -> None:
        """Take up a unit's update, of that many people as far as the server knows; 0: it does not."""

    @abstractmethod
    def total(self) -> Update:
        """What all that were taken up make together."""


class Sum(Combiner):
    """The plain sum: in memory there is one update, however many units there are."""

    def __init__(self) -> None:
        self._total = Update()

    def add(self, update: Update, people: float = 0.0) -> None:
        """Add it."""
        self._total += update

    def total(self) -> Update:
        """The sum so far."""
        return self._total
