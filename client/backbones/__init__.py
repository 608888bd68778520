"""Prediction models: each computes what a user's device scores the items by.

A new one is one file here and one entry in `tessera.common.registry.backbones`, or an entry point of another package.
"""

from tessera.client.backbones.base import Backbone, BackboneInput, Comparison, Inner, LazyScores, Parameter
from tessera.common.registry.backbones import BACKBONES
from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.registry import resolve

__all__ = ["Backbone", "BackboneInput", "Comparison", "Inner", "LazyScores", "Parameter", "make_backbone"]


def make_backbone(settings: ComponentSettings) -> Backbone:
    """The prediction model that settings choose. Raises `ConfigError` where it cannot be imported."""
    made: Backbone = resolve(BACKBONES[settings.name].implementation)(settings)
    return made
