"""Defines a strategy: what each client is sent, and what the server learns from the sum of what they return."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import RunError
from tessera.common.protocol.messages import Broadcast
from tessera.common.protocol.projection import Directions
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update


class Strategy(ABC):
    """The server's half of a federated algorithm; the client's half is on the devices.

    Laws, which `tessera.testing.StrategyContract` checks: until something is learnt, `broadcast` gives a client the same
    content; after `restore(state())` it gives that content again; `aggregate` sees the sum of the updates only.
    """

    catalogue: str
    """Hash of the catalogue's items."""

    @classmethod
    @abstractmethod
    def make(cls, settings: Settings, catalogue: Catalogue, dataset: Path) -> Self:
        """Build it for a run on the items of a dataset's folder."""

    @property
    @abstractmethod
    def views(self) -> tuple[str, ...]:
        """Names of the views that are sent, in their order."""

    @property
    def components(self) -> Directions:
        """Directions of the views along which the next round's gradients are wanted; none: the gradient of each view."""
        return ()

    @property
    def clip(self) -> float:
        """What people's gradients are clipped to in the next round, where a run finds that; 0: as settings say."""
        return 0.0

    @property
    def counts(self) -> Mapping[str, torch.Size]:
        """Names and shapes of the vectors that training brings beside gradients, summed over people; none by default."""
        return {}

    @abstractmethod
    def broadcast(self, client: str | None) -> Broadcast:
        """What a client gets in the coming task; None is one that has not said who it is."""

    def check(self, update: Update) -> None:
        """Raise a `TesseraError` for a device's update that cannot be added to others'; the gradients have been looked at."""
        return None

    @abstractmethod
    def aggregate(self, update: Update) -> None:
        """Learn from the sum of the devices' updates. Raises `RoundAbandoned` where there is nothing in it to learn from."""

    def initialise(self, vectors: Tensor, values: Tensor) -> None:
        """Begin with the interactions' singular vectors [n_items, rank] and values [rank]."""
        raise RunError("this strategy has no item embeddings to start: leave views.spectral_rounds out")

    def item_tables(self) -> Tensors:
        """What is learnt of each item by itself, tables [n_items, width] by name, first the one in which histories are summed
        up; none by default."""
        return {}

    def place(self, items: Tensor, tables: Tensors) -> None:
        """Let the rows of some `items` [n] of these tables begin with others [n, width]."""
        raise RunError("this strategy learns nothing of single items: leave views.fold_in out")

    def features(self) -> Tensor:
        """What the only modality shows of the items, [n_items, n_features]. Raises `RunError`."""
        raise RunError("this strategy has no views of features: leave views.facets out")

    def turn(self, into: Tensor, offset: Tensor) -> None:
        """Begin with the linear map `into` [n_features, dim] of those features and an `offset` [dim]."""
        raise RunError("this strategy has no views of features: leave views.facets out")

    @property
    def divided(self) -> bool:
        """Whether people have been divided into groups."""
        return False

    def history(self) -> Tensor:
        """The items as people's histories are summed up in them, [n_items, dim]."""
        raise RunError("this strategy has no views for groups: leave local.groups out")

    def divide(self, centres: Tensor) -> None:
        """Have devices divide people by centres [n_groups, _] from now on."""
        raise RunError("this strategy has no views for groups: leave local.groups out")

    def report(self) -> dict[str, Any]:
        """What a run's result says besides its scores."""
        return {}

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything learnt so far, by name."""

    @abstractmethod
    def restore(self, tensors: Tensors) -> None:
        """Take up what `state` gave."""

    def grow(self, tensors: Tensors, n_items: int) -> None:
        """Take up what `state` gave in a run on the first `n_items` items of the catalogue; what there is of each item begins
        anew for the others. Nothing else, where a strategy learns nothing of single items. Raises `RunError`."""
        self.restore(tensors)
