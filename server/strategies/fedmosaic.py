"""Gives every device its own mix of all devices' adapters, G_i = sum_j w_ij L_j, by who learns what it learns (FedMosaic).

Its peers that merge adapters differ in the weights only (`tessera.common.registry.methods`), but for those that learn from
answers to public questions: see `tessera.server.adapters.public_lessons`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import RoundAbandoned
from tessera.common.protocol.adapters import ADAPTERS, LOGITS, MODULE, AdapterUpdate
from tessera.common.protocol.messages import Broadcast
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.registry.methods import FedMosaicSettings
from tessera.common.towers.aligned_init import shapes, signature_size, smallest, tower_folder, tower_id
from tessera.common.towers.models.load import load_tower
from tessera.server.adapters.distillation import Distiller
from tessera.server.adapters.logit_sharing import LogitSharing
from tessera.server.adapters.merging import AdapterStore, Shapes
from tessera.server.adapters.public_lessons import distiller, logit_sharing
from tessera.server.adapters.relevance import relevance, similarity, uniform
from tessera.server.strategies.base import Strategy


def expected(dataset: Path, settings: Settings) -> dict[str, Shapes]:
    """What an adapter must hold, by the tower id of each device class that the settings name. Raises `DataError`."""
    classes, mosaic = settings.mosaic.classes, settings.mosaic
    size = signature_size(load_tower(tower_folder(dataset, smallest(dataset, classes))), mosaic)
    found: dict[str, Shapes] = {}
    for name in sorted(set(classes)):
        folder = tower_folder(dataset, name)
        named = tower_id(folder, name, mosaic)  # first: it says how what is missing is made
        found[named] = shapes(folder, load_tower(folder), mosaic, size)
    return found


class FedMosaic(Strategy):
    """The server's half: the last adapter of every client, absent ones included, and what each gets back.

    `expected` are the parts of an adapter by tower. A `distiller` teaches averages, and with `logits` nothing is averaged.
    """

    @classmethod
    def make(cls, settings: Settings, catalogue: Catalogue, dataset: Path) -> Self:
        """Build it for the towers in a dataset's folder. Raises `DataError` without them."""
        shapes = expected(dataset, settings)
        distils, logits = distiller(settings, catalogue, dataset), logit_sharing(settings, catalogue, dataset)
        return cls(settings, catalogue.sha256, shapes, distils, logits)

    @property
    def views(self) -> tuple[str, ...]:
        """None: devices see items by their own towers."""
        return ()

    def __init__(
        self,
        settings: Settings,
        catalogue: str,
        expected: Mapping[str, Shapes],
        distiller: Distiller | None = None,
        logits: LogitSharing | None = None,
    ) -> None:
        self.distiller, self.logits = distiller, logits
        self.mosaic, self.catalogue = settings.mosaic, catalogue
        self.shares = settings.mosaic.method_spec.shares
        self.adapters = AdapterStore(expected, settings.mosaic.largest)
        self._broadcasts: dict[str, Broadcast] = {}

    def broadcast(self, client: str | None) -> Broadcast:
        """What a client gets: its merged module. Nothing before it has sent one, or where nothing is shared."""
        if self.adapters.by_client and not self._broadcasts and self.shares != "nothing":
            self._broadcasts = {
                name: Broadcast(fixed={f"{MODULE}{part}": value for part, value in own.items()})
                for name, own in self._merged().items()
            }
        return self._broadcasts.get(client or "", Broadcast())

    def _merged(self) -> dict[str, dict[str, Tensor]]:
        """What each client gets of what all sent last, by client."""
        last = self.adapters.by_client
        if self.logits:
            return {client: {LOGITS: self.logits.answers} for client in last}
        merged = self.adapters.merged(self._weigh)
        if not self.distiller:
            return merged
        averages = {sent.tower: merged[client] for client, sent in last.items()}  # the same for all of a class
        taught = self.distiller.taught([last[client] for client in sorted(last)], averages)
        return {client: taught[sent.tower] for client, sent in last.items()}

    def check(self, update: Update) -> None:
        """Raise `DataError` unless all towers are those of the run, and every adapter can be merged."""
        for client, tower in update[ADAPTERS].towers.items():
            self.adapters.check_tower(client, tower)
        for client, sent in update[ADAPTERS].modules.items():
            self.adapters.check(client, sent)

    def aggregate(self, update: Update) -> None:
        """Take up what clients sent. Raises `RoundAbandoned` when nobody sent anything."""
        if not update[ADAPTERS].towers:
            raise RoundAbandoned("no client took part")
        for client, sent in update[ADAPTERS].modules.items():
            self.adapters.take(client, sent)
        if self.logits:
            said = {client: sent.logits for client, sent in self.adapters.by_client.items() if sent.logits is not None}
            if said:
                self.logits.learn(said)
        self._broadcasts = {}

    def report(self) -> dict[str, Any]:
        """Cosines of the clients' signatures, and who weighs how much for whom; rows and columns in the order of `clients`."""
        clients = sorted(self.adapters.by_client)
        if not clients or self.shares != "relevant":
            return {}
        signatures = self.adapters.signatures()
        weights = self._weigh(signatures, None)
        found = {"clients": clients, "similarity": similarity(signatures).tolist(), "weights": weights.tolist()}
        return {"relevance": found}

    def state(self) -> dict[str, Tensor]:
        """The clients' last adapters, by client, tower and part, and the server's own where it has one."""
        return {
            f"client/{client}/{sent.tower}/{name}": part
            for client, sent in self.adapters.by_client.items()
            for name, part in sent.parts().items()
        } | {f"server/{name}": part for name, part in (self.logits.lora if self.logits else {}).items()}

    def restore(self, tensors: Tensors) -> None:
        """Take up what `state` gave."""
        found: dict[tuple[str, str], dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            if kind == "client":
                client, tower, part = rest.split("/", 2)
                found.setdefault((client, tower), {})[part] = value
        self.adapters.by_client.clear()
        for (client, tower), parts in found.items():
            self.adapters.take(client, AdapterUpdate.of_parts(tower, parts))
        if self.logits:
            own = {name.removeprefix("server/"): part for name, part in tensors.items() if name.startswith("server/")}
            self.logits.restore(own)
        self._broadcasts = {}

    def _weigh(self, signatures: Tensor, groups: Sequence[str] | None) -> Tensor:
        method = self.mosaic.method
        if isinstance(method, FedMosaicSettings):
            return relevance(signatures, method.temperature, method.include_self, groups)
        return uniform(len(signatures), groups)
