"""FedVLR and FedMosaic at once: devices return gradients of the server's views, and their own towers' adapters."""

from typing import Any

from torch import Tensor

from tessera.common.protocol.messages import Parcel, Tensors, Update
from tessera.server.strategies.fedmosaic import FedMosaic
from tessera.server.strategies.fedvlr import FedVLR

MOSAIC = "client/"
"""Prefix of what FedMosaic keeps; the rest is FedVLR's."""


class Both:
    """Each strategy sees what concerns it; a client's parcel holds the views and its own module."""

    def __init__(self, fedvlr: FedVLR, fedmosaic: FedMosaic) -> None:
        self.fedvlr, self.fedmosaic, self.catalogue = fedvlr, fedmosaic, fedvlr.catalogue
        self._parcels: dict[str, Parcel] = {}

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the server's views."""
        return self.fedvlr.views

    def parcel(self, client: str | None) -> Parcel:
        """The views, and the client's merged module once there is one."""
        name = client or ""
        if name not in self._parcels:
            views, module = self.fedvlr.parcel(client), self.fedmosaic.parcel(client).tensors
            self._parcels[name] = Parcel({**views.tensors, **module}, {**views.content, **module})
        return self._parcels[name]

    def check(self, update: Update) -> None:
        """Raise a `TesseraError` for an update that cannot be absorbed."""
        self.fedmosaic.check(update)

    def absorb(self, update: Update) -> None:
        """Step on the gradients, and take up the adapters."""
        self.fedvlr.absorb(update)
        self.fedmosaic.absorb(update)
        self._parcels = {}

    def start_from(self, vectors: Tensor, values: Tensor) -> None:
        """Start the item embeddings from singular vectors [n_items, rank] and values [rank]."""
        self.fedvlr.start_from(vectors, values)
        self._parcels = {}

    def facts(self) -> dict[str, Any]:
        """Who learns from whom."""
        return self.fedmosaic.facts()

    def state(self) -> dict[str, Tensor]:
        """What both have learnt so far."""
        return self.fedvlr.state() | self.fedmosaic.state()

    def restore(self, tensors: Tensors) -> None:
        """Take up what `state` gave."""
        self.fedvlr.restore({name: value for name, value in tensors.items() if not name.startswith(MOSAIC)})
        self.fedmosaic.restore({name: value for name, value in tensors.items() if name.startswith(MOSAIC)})
        self._parcels = {}
