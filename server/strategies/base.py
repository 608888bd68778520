"""What the round loop asks of a strategy: what each client gets, and what becomes of what they return."""

from typing import Any, Protocol

from torch import Tensor

from tessera.common.protocol.messages import Broadcast
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update


class Strategy(Protocol):
    """The server's half of a federated algorithm; the client's half is on the devices."""

    catalogue: str
    """Hash of the catalogue's items."""

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that are sent, in their order."""
        ...

    def broadcast(self, client: str | None) -> Broadcast:
        """What a client gets in the coming task; None is one that has not said who it is."""
        ...

    def check(self, update: Update) -> None:
        """Raise a `TesseraError` for a device's update that cannot be absorbed."""
        ...

    def aggregate(self, update: Update) -> None:
        """Learn from the sum of the devices' updates."""
        ...

    def initialise(self, vectors: Tensor, values: Tensor) -> None:
        """Begin with the interactions' singular vectors [n_items, rank] and values [rank]."""
        ...

    def report(self) -> dict[str, Any]:
        """What a run's result says besides its scores."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything learnt so far, by name."""
        ...

    def restore(self, tensors: Tensors) -> None:
        """Take up what `state` gave."""
        ...
