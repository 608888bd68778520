"""Ways to train adapters: each says what a device does with its two branches in a round.

A new one is one file here and one entry in `tessera.common.registry.methods`, or an entry point of another package.
"""

import tessera.client.adapters  # noqa: F401 (before PEFT)
from tessera.client.methods.base import LocalTraining, Method, answer
from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.methods import METHODS
from tessera.common.registry.registry import resolve

__all__ = ["LocalTraining", "Method", "answer", "make_method"]


def make_method(settings: ComponentSettings) -> Method:
    """The method that settings choose. Raises `ConfigError` where it cannot be imported."""
    made: Method = resolve(METHODS[settings.name].implementation)(settings)
    return made
