"""Merges the clients' last adapters into what each gets back, G = W L. FedAvg, groups and RELA differ in W only."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from tessera.common.errors import DataError
from tessera.common.protocol.adapters import AdapterUpdate

Tensors = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class AdapterStore:
    """The last adapter of every client: one that is absent in a round keeps what it sent before.

    `expected` says for each tower what `AdapterUpdate.parts` must hold: the server's word, not the first client's. None may
    have a Euclidean norm above `largest`.
    """

    def __init__(self, expected: Mapping[str, Shapes], largest: float = math.inf) -> None:
        self.expected, self.largest = expected, largest
        self.by_client: dict[str, AdapterUpdate] = {}

    def take(self, client: str, sent: AdapterUpdate) -> None:
        """Replace a client's adapter. Raises `DataError`, and keeps the old, when the new one cannot be merged."""
        self.check(client, sent)
        self.by_client[client] = sent

    def check(self, client: str, sent: AdapterUpdate) -> None:
        """Raise `DataError`, which names the client, when an adapter cannot be merged."""
        self.check_tower(client, sent.tower)
        wanted, parts = self.expected[sent.tower], sent.parts()
        shapes = {name: tuple(value.shape) for name, value in parts.items()}
        for name in sorted(wanted.keys() | shapes.keys()):
            if shapes.get(name) != wanted.get(name):
                raise DataError(f"client {client!r} sent {name} of shape {shapes.get(name)}, not {wanted.get(name)}")
        sent.check(client)
        for name, value in parts.items():
            if float(value.double().norm()) > self.largest:
                raise DataError(f"client {client!r} sent {name} of a norm above {self.largest:g}")

    def check_tower(self, client: str, tower: str) -> None:
        """Raise `DataError`, which names the client, when nobody's adapter could come from such a tower."""
        if tower not in self.expected:
            raise DataError(f"client {client!r} has a tower {tower!r}, not one of {sorted(self.expected)}")

    def signatures(self) -> Tensor:
        """The clients' last signatures [n_clients, size], ordered by name."""
        return torch.stack([self.by_client[client].signature for client in sorted(self.by_client)])

    def merged(self, weigh: Callable[[Tensor, Sequence[str] | None], Tensor]) -> dict[str, Tensors]:
        """G_i of every client, ordered by name: P and Q of all clients, plain LoRA of the clients with the same tower.

        `weigh` gives W from signatures [n_clients, size] and groups, such as `relevance`.
        """
        clients = sorted(self.by_client)
        last = [self.by_client[client] for client in clients]
        signatures = self.signatures()
        merged = dict(zip(clients, merge(weigh(signatures, None), [sent.pq for sent in last]), strict=True))
        within = weigh(signatures, [sent.tower for sent in last])
        for tower in sorted({sent.tower for sent in last}):
            rows = [row for row, sent in enumerate(last) if sent.tower == tower]
            own = merge(within[rows][:, rows], [last[row].lora for row in rows])
            for row, lora in zip(rows, own, strict=True):
                merged[clients[row]] |= lora
        return merged


def merge(weights: Tensor, modules: Sequence[Mapping[str, Tensor]]) -> list[Tensors]:
    """G_i = sum_j w_ij L_j for each tensor by name, with `weights` [n_receivers, n_modules] whose rows sum to 1."""
    merged: list[Tensors] = [{} for _ in range(len(weights))]
    for name, like in modules[0].items():
        stacked = torch.stack([module[name] for module in modules]).to(weights.dtype)
        for row, mixed in enumerate(torch.tensordot(weights, stacked, dims=1)):
            merged[row][name] = mixed.to(like.dtype)
    return merged
