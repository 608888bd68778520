"""Every loss of the registry is held to the contract of losses."""

from tessera.common.registry.losses import LOSSES
from tessera.testing import LossContract

for loss in LOSSES:
    name = f"Test{loss.title()}"
    globals()[name] = type(name, (LossContract,), {"name": loss})
