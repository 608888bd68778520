"""Every strategy of the registry is held to the contract of strategies."""

from tessera.common.protocol.adapters import ADAPTERS, ClientAdapters
from tessera.common.protocol.updates import Update
from tessera.common.registry.strategies import STRATEGIES
from tessera.server.strategies.combined import Combined
from tessera.server.strategies.fedvlr import FedVLR
from tessera.testing import StrategyContract
from tessera.testing.data import small_catalogue
from tests.server.test_fedmosaic import CLIENTS, sent, strategy


class TestFedVLR(StrategyContract):
    name = "fedvlr"


class TestFedMosaic(StrategyContract):
    name = "fedmosaic"
    clients = tuple(CLIENTS[:3])

    def make(self):
        return strategy()

    def updates(self, strategy):
        """Other adapters each time they are asked."""
        strategy.asked = getattr(strategy, "asked", 0) + 1
        return sent([0, 1], strategy.asked), sent([2], strategy.asked)


class TestCombined(TestFedMosaic):
    """People's gradients and devices' adapters in one update."""

    name = "combined"

    def make(self):
        views = TestFedVLR().settings()
        return Combined(FedVLR(views, small_catalogue(30)), super().make())

    def updates(self, strategy):
        pairs = zip(TestFedVLR().updates(strategy), super().updates(strategy), strict=True)
        return tuple(gradients + adapters for gradients, adapters in pairs)


def test_every_strategy_is_held_to_the_contract() -> None:
    assert set(STRATEGIES) == {TestFedVLR.name, TestFedMosaic.name, TestCombined.name}
    assert Update()[ADAPTERS] == ClientAdapters()
