"""Reads YAML safely, refuses a key that stands twice in one mapping, of which YAML readers silently take the last, and writes
settings with the reason beside each.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import yaml

LONG = 100
"""Characters of a mapping above which it is written over several lines."""


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


def with_reasons(content: Mapping[str, Any], reasons: Mapping[str, str], heading: Sequence[str]) -> str:
    """Nested settings as YAML, with the reason beside each line that has one, by its dotted key; `heading` are comments.

    What is below a key stands on its line, unless reasons are given there too or the line would be long.
    """
    lines = [f"# {line}".rstrip() for line in heading]
    return "\n".join([*lines, *_block(content, reasons, "", "")]) + "\n"


def _block(content: Mapping[str, Any], reasons: Mapping[str, str], prefix: str, indent: str) -> Iterator[str]:
    for name, value in content.items():
        key = prefix + name
        why = f"  # {reasons[key]}" if key in reasons else ""
        explained = any(other.startswith(f"{key}.") for other in reasons)
        if isinstance(value, Mapping) and (explained or len(_flow(value)) > LONG):
            yield f"{indent}{name}:{why}"
            yield from _block(value, reasons, f"{key}.", indent + "  ")
        else:
            yield f"{indent}{name}: {_flow(value)}{why}"


def _flow(value: Any) -> str:
    """A value on one line."""
    return yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**9, allow_unicode=True).strip()[
        1:-1
    ]
