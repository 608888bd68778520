"""Encoders behind the views: each turns public inputs of a modality, which are cached, into what the views project.

A new one is one file here and one entry in `tessera.common.registry.content_encoders`, or an entry point of another package.
"""

from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.content_encoders import CONTENT_ENCODERS
from tessera.common.registry.registry import resolve
from tessera.server.encoders.base import ContentEncoder, ContentInputs

__all__ = ["ContentEncoder", "ContentInputs", "make_encoder"]


def make_encoder(settings: ComponentSettings, inputs: ContentInputs) -> ContentEncoder:
    """The encoder that settings choose, over one modality. Raises `ConfigError` or `DataError`."""
    made: ContentEncoder = resolve(CONTENT_ENCODERS[settings.name].implementation)(settings, inputs)
    return made
