"""Defines FedMosaic's own part of an update: the adapters of devices, by client, and what each device's tower is.

What a device's adapter sends, and what it gets back: P and Q by place, plain LoRA of its own tower, a signature. Methods that
share no adapters send what the device answers to public questions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from tessera.common.errors import DataError, RunError
from tessera.common.protocol.parts import Part, arrays
from tessera.common.protocol.tensors import from_record, to_record

if TYPE_CHECKING:
    from tessera.common.protocol.parts import Record

CLIENT = r"[0-9a-f]{16}"
"""A device's name within a run: drawn on the device, and says nothing about it."""
MODULE = "module/"
"""Prefix of the tensors of a broadcast that are a device's own merged module G_i, and no views."""
SIGNATURE, LOGITS = "signature", "logits"
PQ, LORA = "pq ", "lora "
MODULES, TOWERS = ".modules", ".towers"


@dataclass(frozen=True)
class AdapterUpdate:
    """What one client sends in a round it takes part in.

    `pq` is P and Q by place, alike for all clients; `lora` the plain LoRA layers, alike for all with the same `tower`;
    `signature` [size] says what it learnt from; `logits` [n_public, n_choices] are its answers to the public questions, 0 where
    nothing is offered, for methods that share these.
    """

    tower: str
    pq: Mapping[str, Tensor]
    lora: Mapping[str, Tensor]
    signature: Tensor
    logits: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """Every tensor, by a name for messages."""
        named = {f"{PQ}{name}": value for name, value in self.pq.items()}
        named |= {f"{LORA}{name}": value for name, value in self.lora.items()}
        return named | {SIGNATURE: self.signature} | ({} if self.logits is None else {LOGITS: self.logits})

    def check(self, client: str) -> None:
        """Raise `DataError`, which names the client, unless all of it is finite numbers."""
        for name, value in self.parts().items():
            if not value.is_floating_point() or not bool(value.isfinite().all()):
                raise DataError(f"client {client!r} sent {name} that is not finite")

    @staticmethod
    def of_parts(tower: str, parts: Mapping[str, Tensor]) -> AdapterUpdate:
        """Undo `parts`. Raises `RunError` for a name that is none of them."""
        pq = {name.removeprefix(PQ): value for name, value in parts.items() if name.startswith(PQ)}
        lora = {name.removeprefix(LORA): value for name, value in parts.items() if name.startswith(LORA)}
        if SIGNATURE not in parts or len(pq) + len(lora) + 1 + (LOGITS in parts) != len(parts):
            raise RunError("an adapter came with parts that are neither P, Q, LoRA, logits nor its signature")
        return AdapterUpdate(tower, pq, lora, parts[SIGNATURE], parts.get(LOGITS))


@dataclass(frozen=True)
class ClientAdapters:
    """The device classes of clients, and the adapters of those that learnt something; both by client.

    Adding puts them side by side: it is commutative where no client is on both sides, as in the updates of different devices.
    """

    towers: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, AdapterUpdate] = field(default_factory=dict)

    def __add__(self, other: ClientAdapters) -> ClientAdapters:
        """Put the clients of both side by side."""
        return ClientAdapters({**self.towers, **other.towers}, {**self.modules, **other.modules})


class AdaptersPart(Part[ClientAdapters]):
    """Adapters by client, side by side."""

    name = "adapters"

    def zero(self) -> ClientAdapters:
        """Nobody's."""
        return ClientAdapters()

    def add(self, left: ClientAdapters, right: ClientAdapters) -> ClientAdapters:
        """Put the clients of both side by side."""
        return left + right

    def check(self, value: ClientAdapters) -> None:
        """Raise `DataError`, which names the client, unless every adapter holds finite numbers."""
        for client, sent in value.modules.items():
            sent.check(client)

    def write(self, value: ClientAdapters) -> dict[str, Record]:
        """The adapters' tensors, each after its client's name, and the device classes."""
        from flwr.app import ConfigRecord

        return {MODULES: to_record(flatten(value.modules)), TOWERS: ConfigRecord(dict(value.towers))}

    def read(self, records: Mapping[str, Record]) -> ClientAdapters:
        """Undo `write`. Raises `RunError` for a client that is called otherwise or has no tower."""
        from flwr.app import ConfigRecord

        classes = records.get(TOWERS)
        if not isinstance(classes, ConfigRecord):
            raise RunError("adapters came without their towers")
        towers = {client: str(tower) for client, tower in classes.items()}
        return ClientAdapters(towers, unflatten(from_record(arrays(records, MODULES)), towers))

    def clients(self, value: ClientAdapters) -> Iterable[str]:
        """All of them: each says who it is, also in a round it learns nothing in."""
        return value.towers


ADAPTERS = AdaptersPart()


def flatten(modules: Mapping[str, AdapterUpdate]) -> dict[str, Tensor]:
    """The tensors of many clients' adapters, each after its client's name and a slash."""
    return {f"{client}/{name}": part for client, sent in modules.items() for name, part in sent.parts().items()}


def unflatten(tensors: Mapping[str, Tensor], towers: Mapping[str, str]) -> dict[str, AdapterUpdate]:
    """Undo `flatten`, with each client's tower. Raises `RunError` for a client that is called otherwise or has no tower."""
    by_client: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        client, _, part = name.partition("/")
        by_client.setdefault(client, {})[part] = value
    for client in {*by_client, *towers}:
        if not re.fullmatch(CLIENT, client) or client not in towers:
            raise RunError("an adapter came from a client without a proper name or a tower")
    return {client: AdapterUpdate.of_parts(towers[client], parts) for client, parts in by_client.items()}
