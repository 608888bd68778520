"""A strategy: FedVLR whose server carries a part of the last rounds' gradients on, as FedAvgM does (Hsu et al. 2019)."""

from dataclasses import replace
from types import MappingProxyType

from torch import Tensor

from tessera.common.protocol.tensors import Tensors, add
from tessera.common.protocol.updates import Update
from tessera.common.registry.strategies import VIEWS_GROUPS, StrategySpec
from tessera.server.strategies.fedvlr import FedVLR

SHARE = 0.5


class Momentum(FedVLR):
    """Steps on g_t + SHARE g_(t-1) + SHARE^2 g_(t-2) + ..., g_t the mean gradient of the views in round t."""

    carried: Tensors = MappingProxyType({})

    def aggregate(self, update: Update) -> None:
        """Add the part that is carried on, and step."""
        means = {name: value / max(update.weight, 1e-12) for name, value in update.gradients.items()}
        total = add(means, {name: SHARE * value for name, value in self.carried.items()})
        super().aggregate(replace(update, gradients={name: value * update.weight for name, value in total.items()}))
        self.carried = total

    def state(self) -> dict[str, Tensor]:
        """What FedVLR has learnt, and what is carried on."""
        return super().state() | {f"carried/{name}": value for name, value in self.carried.items()}

    def restore(self, tensors: Tensors) -> None:
        """Take up what `state` gave."""
        self.carried = {name[8:]: value for name, value in tensors.items() if name.startswith("carried/")}
        super().restore({name: value for name, value in tensors.items() if not name.startswith("carried/")})


SPEC = StrategySpec("momentum_strategy:Momentum", VIEWS_GROUPS, is_sum=True)
