"""Decides what is sent to devices and learns from what they return: one file for each federated algorithm.

A new one is one file here and one entry in `tessera.common.registry.strategies`, or an entry point of another package.
"""

from pathlib import Path

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.registry.registry import resolve
from tessera.server.strategies.base import Strategy

__all__ = ["Strategy", "make_strategy"]


def make_strategy(settings: Settings, catalogue: Catalogue, dataset: Path) -> Strategy:
    """The strategy that a run's settings choose, for the items of a dataset's folder. Raises `ConfigError` or `DataError`."""
    made: Strategy = resolve(settings.strategy_spec.implementation).make(settings, catalogue, dataset)
    return made
