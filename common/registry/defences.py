"""Lists the ways to combine nodes' gradients so that a few hostile nodes have little say: the settings of each.

A new one is one file in `server/robust/` and one entry below. Another package offers one as a `DefenceSpec` in the entry-point
group `tessera.defences`.
"""

from dataclasses import dataclass

from tessera.common.registry.component import ComponentSettings, Positive
from tessera.common.registry.registry import Registry


class AttackersSettings(ComponentSettings):
    """Settings of defences against a known number of attackers."""

    attackers: Positive = 1
    """How many may be hostile of the nodes, or of the groups of nodes under secure sums, that answer a round."""


@dataclass(frozen=True)
class DefenceSpec:
    """A defence: a `tessera.server.robust.combine.TensorCombiner`, named by `implementation`, that is made with the number of
    attackers. Without settings of that number it is the plain sum, which needs no implementation.
    """

    implementation: str = ""
    settings: type[ComponentSettings] = AttackersSettings


DEFENCES = Registry(
    "defence",
    "tessera.defences",
    DefenceSpec,
    {
        "none": DefenceSpec(settings=ComponentSettings),
        "row-cap": DefenceSpec("tessera.server.robust.row_cap:CappedSum"),
        "trim": DefenceSpec("tessera.server.robust.trim:TrimmedSum"),
    },
)
