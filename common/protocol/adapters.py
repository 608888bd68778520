"""What a device's adapter sends, and what it gets back: P and Q by place, plain LoRA of its own tower, a signature."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tessera.common.errors import RunError

CLIENT = r"[0-9a-f]{16}"
"""A device's name within a run: drawn on the device, and says nothing about it."""
MODULE = "module/"
"""Prefix of the tensors of a broadcast that are a device's own merged module G_i, and no views."""
SIGNATURE = "signature"
PQ, LORA = "pq ", "lora "


@dataclass(frozen=True)
class AdapterUpdate:
    """What one client sends in a round it takes part in.

    `pq` is P and Q by place, alike for all clients; `lora` the plain LoRA layers, alike for all with the same `tower`;
    `signature` [size] says what it learnt from.
    """

    tower: str
    pq: Mapping[str, Tensor]
    lora: Mapping[str, Tensor]
    signature: Tensor

    def parts(self) -> dict[str, Tensor]:
        """Every tensor, by a name for messages."""
        named = {f"{PQ}{name}": value for name, value in self.pq.items()}
        return {**named, **{f"{LORA}{name}": value for name, value in self.lora.items()}, SIGNATURE: self.signature}

    @staticmethod
    def of_parts(tower: str, parts: Mapping[str, Tensor]) -> "AdapterUpdate":
        """Undo `parts`. Raises `RunError` for a name that is none of them."""
        pq = {name.removeprefix(PQ): value for name, value in parts.items() if name.startswith(PQ)}
        lora = {name.removeprefix(LORA): value for name, value in parts.items() if name.startswith(LORA)}
        if SIGNATURE not in parts or len(pq) + len(lora) + 1 != len(parts):
            raise RunError("an adapter came with parts that are neither P, Q, LoRA nor its signature")
        return AdapterUpdate(tower, pq, lora, parts[SIGNATURE])


def flatten(modules: Mapping[str, AdapterUpdate]) -> dict[str, Tensor]:
    """The parts of many clients' contributions, each after its client's name and a slash."""
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
