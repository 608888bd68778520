"""The sum of what nodes answered to one thing that was asked, and what of it was dropped."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tessera.common.errors import TesseraError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.updates import Update
from tessera.server.robust.combine import Combiner, Sum

SAID = 300
"""Characters of what a node says that are passed on."""


@dataclass
class Aggregate:
    """What the nodes answered to one thing that was asked, combined as it came in; bytes are of tensors, over all messages.

    `answered` are the nodes whose answers are in it, `dropped` counts by kind what was not added, `troubles` say why, node by
    node, and `lost` are sums of what was not valid. `failure` is what there is to say where the sum is of no use.
    """

    combiner: Combiner = field(default_factory=Sum)
    answered: set[int] = field(default_factory=set)
    bytes_down: int = 0
    bytes_up: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    lost: MetricSums = field(default_factory=MetricSums)
    failure: TesseraError | None = None

    @property
    def nodes(self) -> int:
        """How many nodes' answers are in it."""
        return len(self.answered)

    @property
    def update(self) -> Update:
        """What the nodes' updates make together."""
        return self.combiner.total()

    def drop(self, kind: str, node: int, why: str) -> None:
        """Count something that is not added, and say why; what is not printable in a node's own words is left out."""
        self.dropped[kind] += 1
        self.troubles.append(f"node {node} {''.join(filter(str.isprintable, why))[:SAID]}")

    def drop_group(self, kind: str, nodes: Sequence[int], why: str) -> None:
        """Count the answers of a group that cannot be added, which were taken one by one before."""
        self.answered -= set(nodes)
        self.dropped[kind] += len(nodes)
        self.troubles.append(f"the group of nodes {', '.join(map(str, sorted(nodes)))}: {why}")

    def require(self) -> "Aggregate":
        """This, where it is of use. Raises `RoundAbandoned` where too few answered, and `RunError` for the run's own fault."""
        if self.failure:
            raise self.failure
        return self

    def faults(self) -> dict[str, Any]:
        """What a line of the metrics says of what was dropped: nothing where nothing was."""
        return {"dropped": dict(self.dropped), "troubles": tuple(self.troubles)} if self.dropped else {}
