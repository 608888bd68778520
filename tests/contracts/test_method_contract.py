"""Every method of the registry is held to the contract of methods."""

from tessera.common.registry.methods import METHODS
from tessera.testing.methods import MethodContract

for method in METHODS:
    name = f"Test{method.title()}"
    globals()[name] = type(name, (MethodContract,), {"name": method})
