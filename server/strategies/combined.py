"""Runs FedVLR and FedMosaic at once: devices return gradients of the server's views, and their own towers' adapters."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.protocol.messages import Broadcast
from tessera.common.protocol.projection import Directions
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.server.strategies.base import Strategy
from tessera.server.strategies.fedmosaic import FedMosaic
from tessera.server.strategies.fedvlr import FedVLR

MOSAIC = "client/"
"""Prefix of what FedMosaic keeps; the rest is FedVLR's."""


class Combined(Strategy):
    """Each strategy sees what concerns it; a client's broadcast holds the views and its own module."""

    def __init__(self, fedvlr: FedVLR, fedmosaic: FedMosaic) -> None:
        self.fedvlr, self.fedmosaic, self.catalogue = fedvlr, fedmosaic, fedvlr.catalogue
        self._broadcasts: dict[str, Broadcast] = {}

    @classmethod
    def make(cls, settings: Settings, catalogue: Catalogue, dataset: Path) -> Self:
        """Build both. Raises `DataError` without towers."""
        return cls(FedVLR.make(settings, catalogue, dataset), FedMosaic.make(settings, catalogue, dataset))

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the server's views."""
        return self.fedvlr.views

    @property
    def components(self) -> Directions:
        """Directions of the server's views along which gradients are wanted."""
        return self.fedvlr.components

    @property
    def clip(self) -> float:
        """What gradients of the server's views are clipped to in the next round, where a run finds that."""
        return self.fedvlr.clip

    @property
    def counts(self) -> Mapping[str, torch.Size]:
        """What training brings of the server's views beside gradients."""
        return self.fedvlr.counts

    def broadcast(self, client: str | None) -> Broadcast:
        """The views, and the client's merged module once there is one."""
        name = client or ""
        if name not in self._broadcasts:
            self._broadcasts[name] = replace(
                self.fedvlr.broadcast(client), fixed=self.fedmosaic.broadcast(client).fixed
            )
        return self._broadcasts[name]

    def check(self, update: Update) -> None:
        """Raise a `TesseraError` for an update that cannot be absorbed."""
        self.fedmosaic.check(update)

    def aggregate(self, update: Update) -> None:
        """Step on the gradients, and take up the adapters."""
        self.fedvlr.aggregate(update)
        self.fedmosaic.aggregate(update)
        self._broadcasts = {}

    def initialise(self, vectors: Tensor, values: Tensor) -> None:
        """Start the item embeddings from singular vectors [n_items, rank] and values [rank]."""
        self.fedvlr.initialise(vectors, values)
        self._broadcasts = {}

    def report(self) -> dict[str, Any]:
        """Who learns from whom."""
        return self.fedmosaic.report()

    def state(self) -> dict[str, Tensor]:
        """What both have learnt so far."""
        return self.fedvlr.state() | self.fedmosaic.state()

    def restore(self, tensors: Tensors) -> None:
        """Take up what `state` gave."""
        self.fedvlr.restore({name: value for name, value in tensors.items() if not name.startswith(MOSAIC)})
        self.fedmosaic.restore({name: value for name, value in tensors.items() if name.startswith(MOSAIC)})
        self._broadcasts = {}
