"""Tests that any component must pass, ours and those of other packages: inherit one, say which component, and run pytest.

    from tessera.testing import BackboneContract

    class TestMine(BackboneContract):
        name = "mine"

Contracts that need more than torch are in modules of their own: `tessera.testing.methods` (methods of training adapters, which
needs PEFT) and `tessera.testing.data_tools` (converters and encoders).
"""

from tessera.testing.backbones import BackboneContract
from tessera.testing.losses import LossContract
from tessera.testing.strategies import StrategyContract

__all__ = ["BackboneContract", "LossContract", "StrategyContract"]
