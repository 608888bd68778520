"""What the nodes of a federation are asked at a time, and what has come of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from tessera.common.protocol.messages import Broadcast, Kind, Task
from tessera.common.protocol.signed.statements import Statement
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.server.aggregate import Aggregate
from tessera.server.secure.sums import MaskedAnswers

TRIES = 3
"""How often a node is asked the same within a request, when it fails or has lost the tensors it needs."""
Check = Callable[[Update], None]
"""Raises a `TesseraError` for an update that cannot be taken."""

For = Callable[[str | None], Broadcast]
"""What goes to a client, or to a node of which no client is known yet."""


def no_broadcast(client: str | None) -> Broadcast:
    """No tensors."""
    return Broadcast()


class Asked(NamedTuple):
    """What a node was sent a message for."""

    node: int
    task: Task


@dataclass(frozen=True)
class Request:
    """A task, and what is asked along with it, as it goes to several nodes: what each is to hold for it, what must be true of
    their replies, and the `totals` of these by what was asked."""

    task: Task
    broadcasts: Mapping[int, Broadcast]
    inputs: Tensors
    counts: Mapping[str, torch.Size]
    check: Check
    totals: Mapping[Kind, Aggregate]
    masked: MaskedAnswers | None = None
    statement: Statement | None = None
    """What the server signs of it."""
    tries: Counter[int] = field(default_factory=Counter)

    @property
    def total(self) -> Aggregate:
        """What the nodes returned to the task itself."""
        return self.totals[self.task.kind]

    def answered(self) -> int:
        """How many nodes have answered the task itself; of masked answers, those whose whole group has."""
        return self.masked.whole(self.task.kind, self.broadcasts) if self.masked else self.total.nodes

    def again(self, node: int) -> bool:
        """Whether a node may be asked once more, which counts."""
        self.tries[node] += 1
        return self.tries[node] < TRIES

    def drop(self, tasks: Iterable[Task], kind: str, node: int, why: str) -> None:
        """Count what a node was asked and did not answer."""
        for task in tasks:
            self.totals[task.kind].drop(kind, node, why)

    def alike(self, holds: Callable[[int], bool]) -> list[list[int]]:
        """The nodes in groups that get the very same message."""
        groups: dict[tuple[str, bool], list[int]] = {}
        for node, broadcast in self.broadcasts.items():
            groups.setdefault((broadcast.name, holds(node)), []).append(node)
        return list(groups.values())
