"""The sum of what nodes returned to one request, and what of it was dropped."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.updates import Update

SAID = 300
"""Characters of what a node says that are passed on."""


@dataclass
class Aggregate:
    """What the nodes returned to one request, added up as it came in; bytes are of tensors, over all messages.

    `dropped` counts by kind what was not added, `troubles` say why, node by node, and `lost` are sums of what was not valid.
    """

    update: Update = field(default_factory=Update)
    nodes: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    lost: MetricSums = field(default_factory=MetricSums)

    def drop(self, kind: str, node: int, why: str) -> None:
        """Count something that is not added, and say why; what is not printable in a node's own words is left out."""
        self.dropped[kind] += 1
        self.troubles.append(f"node {node} {''.join(filter(str.isprintable, why))[:SAID]}")

    def faults(self, later: "Aggregate | None" = None) -> dict[str, Any]:
        """What a line of the metrics says of it and of a later one: nothing where nothing was dropped."""
        answers = [self, later] if later else [self]
        dropped = sum((answer.dropped for answer in answers), Counter[str]())
        troubles = [trouble for answer in answers for trouble in answer.troubles]
        return {"dropped": dict(dropped), "troubles": tuple(troubles)} if dropped else {}
