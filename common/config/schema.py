"""Describes a run's YAML file as a JSON schema, by which editors complete keys, show what they mean and mark mistakes."""

from typing import Any

from tessera.common.config.settings import EXECUTORS, Settings
from tessera.common.registry.converters import CONVERTED, CONVERTERS

Schema = dict[str, Any]
OVERLAY = "Overlay"
"""What definitions of settings that are laid over others end in."""


def config_schema() -> Schema:
    """The schema of a file: all settings, and under `executors` what is laid over them for one executor."""
    schema = Settings.model_json_schema()
    settings: Schema = schema.pop("$defs")
    settings["DataSettings"]["properties"]["kind"]["enum"] = [CONVERTED, *CONVERTERS]
    for group in (schema, *settings.values()):
        _untitled(group)
    overlay = _partial(schema)
    definitions = settings | {f"{name}{OVERLAY}": _partial(group) for name, group in settings.items()}
    executors = {
        "description": "Settings that are laid over the others for one executor.",
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"$ref": f"#/$defs/{OVERLAY}"} for name in EXECUTORS},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "Settings of a Tessera run",
        "properties": schema["properties"] | {"executors": executors},
        "$defs": definitions | {OVERLAY: overlay},
    }


def _untitled(group: Schema) -> None:
    """Take out the titles that only repeat a key."""
    for field in group.get("properties", {}).values():
        field.pop("title", None)


def _partial(schema: Any) -> Any:
    """The same where any part may be missing, as in settings that are laid over others."""
    if isinstance(schema, list):
        return [_partial(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key == "$ref":
            found[key] = f"{value}{OVERLAY}"
        elif key not in ("required", "default"):
            found["anyOf" if key == "oneOf" else key] = _partial(value)
    return found
