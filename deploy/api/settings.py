"""Reads the settings of a run for programs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.common.config.loading import load_settings, settings_of
from tessera.common.config.settings import Settings

Config = str | os.PathLike[str] | Mapping[str, Any]
"""Settings as people write them: a YAML file, or a mapping of the same shape."""


def load_config(config: Config, *changes: str, executor: str = "inline") -> Settings:
    """Read and validate settings; `changes` are written KEY=VALUE, such as "local.learning_rate=0.01", and come last.

    `executor` says whose part of the section `executors` holds. Raises `ConfigError` that names the file, each bad key and the
    nearest known one.
    """
    if isinstance(config, Mapping):
        return settings_of(config, "these settings", executor, changes)
    return load_settings(Path(config), executor, changes)
