"""What both sides must know of a strategy: its settings, and which groups of the run's settings it reads.

A new one is one file in `server/strategies/` and one entry here, or an entry point `tessera.strategies` of another package.
"""

from dataclasses import dataclass

from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.registry import Registry

VIEWS_GROUPS = frozenset({"views", "local", "server", "wire", "privacy"})
"""Groups of settings that concern the server's views and the gradients that come back for them."""
TOWER_GROUPS = frozenset({"mosaic"})
"""Groups of settings that concern towers on the devices."""
ADAPTERS = "tessera.common.protocol.adapters:ADAPTERS"


@dataclass(frozen=True)
class StrategySpec:
    """A strategy: a `tessera.server.strategies.base.Strategy`, named by `implementation`, and what both sides know of it.

    `groups` are the groups of settings that it reads; others are refused. `is_sum` says whether all that the server learns of
    the devices is the sum of their updates. `parts` names, as "package.module:attribute", the
    `tessera.common.protocol.parts.Part`s of an update that it takes beside everybody's; a reply with any other is refused.
    `defended` says whether its gradients may be combined by a defence (`tessera.common.registry.defences`): what it learns
    from them must mean the same when rows are cut and extremes are left out.
    """

    implementation: str
    groups: frozenset[str]
    is_sum: bool
    parts: tuple[str, ...] = ()
    settings: type[ComponentSettings] = ComponentSettings
    defended: bool = False

    @property
    def has_sums(self) -> bool:
        """Whether devices return anything that is added up, and so can be masked."""
        return self.is_sum or self.has_views

    @property
    def has_views(self) -> bool:
        """Whether the server sends views of the items."""
        return "views" in self.groups

    @property
    def has_towers(self) -> bool:
        """Whether devices adapt towers of their own."""
        return "mosaic" in self.groups


STRATEGIES = Registry(
    "strategy",
    "tessera.strategies",
    StrategySpec,
    {
        "fedvlr": StrategySpec("tessera.server.strategies.fedvlr:FedVLR", VIEWS_GROUPS, is_sum=True, defended=True),
        "fedmosaic": StrategySpec("tessera.server.strategies.fedmosaic:FedMosaic", TOWER_GROUPS, False, (ADAPTERS,)),
        "combined": StrategySpec(
            "tessera.server.strategies.combined:Combined",
            VIEWS_GROUPS | TOWER_GROUPS,
            False,
            (ADAPTERS,),
            defended=True,
        ),
    },
)
