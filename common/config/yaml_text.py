"""Reads YAML safely, and refuses a key that stands twice in one mapping, of which YAML readers silently take the last."""

from collections.abc import Hashable
from typing import Any

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A key that stands twice in one mapping."""


class _Loader(yaml.SafeLoader):
    """The safe loader, strict about keys at any depth."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping whose own keys differ; what `<<` brings along may be overridden."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            name, line = str(getattr(key, "value", "")), key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in lines:
                where = f"in line {line}" if lines[name] == line else f"in lines {lines[name]} and {line}"
                raise DuplicateKeyError(
                    f"{name!r} stands twice, {where}: leave one, or put what is below them together"
                )
            lines[name] = line
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """What a YAML text says. Raises `yaml.YAMLError`, of which `DuplicateKeyError` says enough by itself."""
    return yaml.load(text, Loader=_Loader)
