"""Tests that any component must pass, ours and those of other packages: inherit one, say which component, and run pytest.

    from tessera.testing import BackboneContract

    class TestMine(BackboneContract):
        name = "mine"

The contract of methods of training adapters needs PEFT, and is in `tessera.testing.methods`.
"""

from tessera.testing.backbones import BackboneContract
from tessera.testing.losses import LossContract
from tessera.testing.strategies import StrategyContract

__all__ = ["BackboneContract", "LossContract", "StrategyContract"]
