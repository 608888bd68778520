"""What backbones share, for tests that make up what a server sends."""

from tessera.common.config.settings import LocalSettings
from tessera.common.registry.backbones import BACKBONES


def shared_shapes(backbone: str, dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the head of a backbone under its default settings."""
    settings = LocalSettings.model_validate({"backbone": backbone}).backbone
    return {name: one.shape for name, one in BACKBONES[backbone].shared(dim, settings).items()}
