"""Settings as people write them: YAML, values for one executor laid over it, single changes, and errors that say which key."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tessera.common.config.settings import EXECUTORS, Settings
from tessera.common.errors import ConfigError


def load_settings(path: Path, executor: str = "", changes: Sequence[str] = ()) -> Settings:
    """Read and validate a YAML file. Raises `ConfigError` that names the file and each bad key.

    Under `executors` a file may hold other values for one of them, such as fewer rounds over gRPC; those of `executor` are
    laid over the rest. `changes` are KEY=VALUE and come last.
    """
    content = read_yaml(path)
    overlays = content.pop("executors", {})
    fits = isinstance(overlays, dict) and not overlays.keys() - EXECUTORS
    if not fits or not all(isinstance(overlay, dict | None) for overlay in overlays.values()):
        raise ConfigError(f"{path}: `executors` maps {', '.join(EXECUTORS)} to settings")
    content = overlaid(content, overlays.get(executor) or {})
    for change in changes:
        content = overlaid(content, _changed(change))
    return parse_settings(content, str(path))


def overlaid(content: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested values over others; neither is changed."""
    merged = dict(content)
    for name, value in overlay.items():
        below = merged.get(name)
        merged[name] = overlaid(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def nested(key: str, value: Any) -> dict[str, Any]:
    """Turn "local.negatives" and 4 into {"local": {"negatives": 4}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def _changed(change: str) -> dict[str, Any]:
    """Read "local.negatives=4" as nested settings."""
    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"{change!r}: write KEY=VALUE, such as rounds=5")
    try:
        return nested(key, yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"{change!r}: {value!r} is not a YAML value: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises `ConfigError` that names the file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: settings are a mapping, not a {type(content).__name__}")
    return content


def parse_settings(content: Mapping[str, Any], source: str) -> Settings:
    """Validate settings that came from `source`. Raises `ConfigError`."""
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        problems = [_explain(problem["type"], problem["loc"], problem["msg"]) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(problems)) from None


def _explain(kind: str, location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(map(str, location))
    if kind != "extra_forbidden":
        return f"{key}: {message}" if key else message
    near = difflib.get_close_matches(key, _keys(Settings), n=1, cutoff=0.0)
    return f"unknown setting {key!r}; the nearest known one is {near[0]!r}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """All dotted keys below `model`, those of groups too."""
    keys = []
    for name, field in model.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            keys += [prefix + name, *_keys(group, f"{prefix}{name}.")]
        else:
            keys.append(prefix + name)
    return keys
