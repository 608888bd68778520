"""Reads settings as people write them: YAML, values for one executor laid over it, and single changes KEY=VALUE.

Errors name the file, the key and the nearest known one.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from tessera.common.config.components import component_of
from tessera.common.config.effects import Reasons, prune, set_without_effect
from tessera.common.config.network import network_formats
from tessera.common.config.settings import EXECUTORS, Settings
from tessera.common.config.yaml_text import DuplicateKeyError, load_yaml
from tessera.common.errors import ConfigError
from tessera.common.registry.registry import nearest
from tessera.common.utils.atomic_files import read_bytes

GRID = {"methods", "extends"}
"""Of which any grid of `tessera bench` has one, and no settings of a run."""
NETWORK = "grpc"
"""The executor whose devices are elsewhere."""


def load_settings(path: Path, executor: str = "", changes: Sequence[str] = ()) -> Settings:
    """Read and validate a YAML file. Raises `ConfigError` that names the file and each bad key.

    Under `executors` a file may hold other values for one of them, such as fewer rounds over gRPC; those of `executor` are
    laid over the rest. `changes` are KEY=VALUE and come last. What they leave without effect of the file's own settings is left
    behind: who takes the item embeddings away need not take their size away too. Over gRPC `network_formats` stand for what
    nobody has set.
    """
    return settings_of(read_yaml(path), str(path), executor, changes)


def settings_of(written: Mapping[str, Any], source: str, executor: str = "", changes: Sequence[str] = ()) -> Settings:
    """The same of what is in a file's place, and came from `source`, which errors name."""
    content = deepcopy(dict(written))
    if GRID & content.keys():
        raise ConfigError(f"{source} is a grid of runs, not the settings of one: tessera bench runs it")
    overlays = content.pop("executors", {})
    fits = isinstance(overlays, dict) and not overlays.keys() - EXECUTORS
    if not fits or not all(isinstance(overlay, dict | None) for overlay in overlays.values()):
        raise ConfigError(f"{source}: `executors` maps {', '.join(EXECUTORS)} to settings")
    _refuse_repeated(changes)
    file, layers = content, [overlays.get(executor) or {}, *map(_changed, changes)]
    for layer in layers:
        content = overlaid(content, layer)
    newly_idle = _idle(content).keys() - _idle(file).keys()
    prune(content, newly_idle - {key for layer in layers for key in _leaves(layer)})
    settings = parse_settings(content, source)
    formats = network_formats(settings) if executor == NETWORK else {}
    return parse_settings(overlaid(content, formats), source) if formats else settings


def overlaid(content: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested settings over others; neither is changed.

    A component of another name (`loss: bce` over `loss: {name: next, next_item_samples: 8}`) begins with its own defaults for
    what the one below has no setting for, and loses what only that one has.
    """
    return _overlaid(content, overlay, Settings)


def _overlaid(content: Mapping[str, Any], overlay: Mapping[str, Any], model: type[BaseModel] | None) -> dict[str, Any]:
    """The same for the group of settings that `model` describes; None where it is none we know."""
    merged = dict(content)
    for name, value in overlay.items():
        field = model.model_fields.get(name) if model else None
        component, below = component_of(field) if field else None, merged.get(name)
        if component and below is not None:
            merged[name] = component.merged(below, value)
        elif isinstance(below, dict) and isinstance(value, dict):
            merged[name] = _overlaid(below, value, _group(field))
        else:
            merged[name] = value
    return merged


def nested(key: str, value: Any) -> dict[str, Any]:
    """Turn "local.recency" and 1 into {"local": {"recency": 1}}."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return dict(value)


def _idle(content: Mapping[str, Any]) -> Reasons:
    """What is set there and has no effect; nothing where settings are not valid, which is said elsewhere."""
    try:
        return set_without_effect(Settings.model_validate(content))
    except ValidationError:
        return {}


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of all values of nested settings."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _refuse_repeated(changes: Sequence[str]) -> None:
    """Raise `ConfigError` where two changes KEY=VALUE are of one key: which of them is meant?"""
    values: dict[str, str] = {}
    for change in changes:
        key, _, value = change.partition("=")
        if values.setdefault(key, value) != value:
            raise ConfigError(f"{key} is set twice, to {values[key]} and to {value}: leave one")


def _changed(change: str) -> dict[str, Any]:
    """Read "local.recency=1" as nested settings."""
    key, equals, value = change.partition("=")
    if not equals:
        raise ConfigError(f"{change!r}: write KEY=VALUE, such as rounds=5")
    try:
        return nested(key, load_yaml(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"{change!r}: {value!r} is not a YAML value: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping. Raises `ConfigError` that names the file."""
    try:
        content = load_yaml(read_bytes(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except IsADirectoryError:
        inside = path / "config.yaml"
        told = f"its settings are in {inside}" if inside.is_file() else "name a YAML file"
        raise ConfigError(f"{path} is a folder: {told}") from None
    except DuplicateKeyError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # such as a month 13, or brackets without end
        raise ConfigError(f"{path} is not readable YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: settings are a mapping, not a {type(content).__name__}")
    return content


def parse_settings(content: Mapping[str, Any], source: str) -> Settings:
    """Validate settings that came from `source`. Raises `ConfigError`, also for a setting that has no effect beside others."""
    try:
        settings = Settings.model_validate(content)
    except ValidationError as error:
        problems = [_explain(problem["type"], problem["loc"], problem["msg"]) for problem in error.errors()]
        raise ConfigError(f"{source}: " + "; ".join(problems)) from None
    if idle := set_without_effect(settings):
        reasons = "; ".join(f"{key} has no effect: {why}" for key, why in idle.items())
        raise ConfigError(f"{source}: {reasons}")
    return settings


def _explain(kind: str, location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(map(str, location))
    if kind != "extra_forbidden":
        text = message.removeprefix("Value error, ")
        return f"{key}: {text}" if key else text
    return f"unknown setting {key!r}; the nearest known one is {nearest(key, list(keys_of(Settings)))!r}"


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All dotted keys below `model`, those of groups and of our own components too."""
    for name, field in model.model_fields.items():
        yield prefix + name
        component = component_of(field)
        if component:
            for spec in component.registry.builtin.values():
                yield from keys_of(spec.settings, f"{prefix}{name}.")
        elif group := _group(field):
            yield from keys_of(group, f"{prefix}{name}.")


def _group(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model of a setting that is a group of settings."""
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def flat(settings: Settings) -> dict[str, str]:
    """Settings in words, by their dotted names, as KEY=VALUE takes them: all that have an effect."""

    def below(content: dict[str, Any], above: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in content.items():
            found |= below(value, f"{above}{key}.") if isinstance(value, dict) else {above + key: str(value)}
        return found

    return below(settings.model_dump(mode="json"), "")
