"""Writes pages from the code: settings and lines of metrics from their models, commands from their own help."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click
import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tessera.common.config.components import component_of
from tessera.common.config.settings import Settings
from tessera.common.metrics import names
from tessera.common.metrics.records import (
    AbandonedRecord,
    BaselinesRecord,
    EvaluationRecord,
    ResultRecord,
    RoundRecord,
    StatisticsRecord,
)
from tessera.common.registry.registry import Registry
from tessera.deploy.cli.main import app

Schema = dict[str, Any]


def on_files(files: Files, config: Any) -> Files:
    """Add configuration.md, metrics.md and commands.md."""
    files.append(File.generated(config, "configuration.md", content="\n".join(configuration())))
    files.append(File.generated(config, "metrics.md", content="\n".join(metrics())))
    files.append(File.generated(config, "commands.md", content="\n".join(commands())))
    return files


def configuration() -> Iterator[str]:
    """The settings of a run, group by group."""
    yield "# Settings\n"
    yield (
        "Everything that a run's YAML file may hold, group by group. This page is written from the settings' own models.\n"
        "On the command line `--set local.recency=1` changes `recency` in the group `local`. An unknown name is an error that\n"
        "names the nearest known one, and so is a setting that would do nothing. `tessera config show CONFIG` prints the\n"
        "settings of a run with all defaults, `tessera config schema` a JSON schema that editors complete and check files by.\n"
    )
    yield (
        "Some settings choose a component by its name. Such a component may have settings of its own, which are written\n"
        "beside the name: `loss: {name: bce, negatives: 8}`, or `--set local.loss.name=bce --set local.loss.negatives=8`.\n"
    )
    yield "`tessera config show CONFIG` prints the settings of a run as they are resolved.\n"
    yield (
        "Editors complete and check settings by a JSON schema: `tessera config schema > schema.json`, and a first line\n"
        "`# yaml-language-server: $schema=schema.json` in the YAML file.\n"
    )
    yield from _group(Settings, "", "The run")


def _group(model: type[BaseModel], path: str, title: str) -> Iterator[str]:
    """A group as a table of its own settings, then the components that it chooses, then the groups below it."""
    yield f"## {title}\n"
    if path and model.__doc__:
        yield model.__doc__ + "\n"
    below = {name: field.annotation for name, field in model.model_fields.items() if _is_group(field)}
    yield from _table(model, [name for name in model.model_fields if name not in below])
    for name, field in model.model_fields.items():
        if (component := component_of(field)) and _has_settings(component.registry):
            yield from _component(f"{path}.{name}" if path else name, component.registry)
    for name, group in below.items():
        yield from _group(group, f"{path}.{name}" if path else name, f"`{name}`")  # type: ignore[arg-type]


def _is_group(field: FieldInfo) -> bool:
    return (
        isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) and component_of(field) is None
    )


def _has_settings(registry: Registry[Any]) -> bool:
    return any(len(spec.settings.model_fields) > 1 for spec in registry.builtin.values())


def _component(path: str, registry: Registry[Any]) -> Iterator[str]:
    """The components that can be chosen, and the settings that each has of its own."""
    yield f"### `{path}`\n"
    plain = [name for name, spec in registry.builtin.items() if len(spec.settings.model_fields) == 1]
    if plain:
        yield f"Without settings of their own: {', '.join(f'`{name}`' for name in plain)}.\n"
    for name, spec in registry.builtin.items():
        if name not in plain:
            yield f"`{name}`:\n"
            yield from _table(spec.settings, [own for own in spec.settings.model_fields if own != "name"])


def _table(model: type[BaseModel], names: list[str], what: str = "setting") -> Iterator[str]:
    """Settings, or other fields of a model, with the values they may have, their default and what they mean."""
    schema = model.model_json_schema()
    if not names:
        return
    yield f"| {what} | values | default | |\n|---|---|---|---|"
    for name in names:
        field, shown = model.model_fields[name], schema["properties"][name]
        about = " ".join((field.description or "").split())
        component = component_of(field)
        values = ", ".join(f"`{one}`" for one in component.registry.builtin) if component else _values(schema, shown)
        default = component.default if component else shown.get("default")
        yield f"| `{name}` | {values} | {'needed' if field.is_required() else _plain(default)} | {_cell(about)} |"
    yield ""


def _values(schema: Schema, field: Schema) -> str:
    """What a setting may be, in words."""
    if "$ref" in field:
        field = schema["$defs"][field["$ref"].rsplit("/", 1)[-1]]
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(dict.fromkeys(_values(schema, option) for option in options))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = str(field.get("type", "anything"))
    if kind == "array":
        items = field.get("items") or {}
        return f"list of {_values(schema, items)}" if items else "list"
    names = {"integer": "whole number", "boolean": "`true`, `false`", "string": "text", "null": "nothing"}
    return names.get(kind, kind) + _bounds(field)


def _bounds(field: Schema) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    return "".join(f", {word} {field[key]:g}" for key, word in words.items() if key in field)


def _plain(value: Any) -> str:
    """A default as it stands in YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != "" else '`""`'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")


def metrics() -> Iterator[str]:
    """The lines of a run's metrics, kind by kind."""
    yield "# Metrics\n"
    yield (
        "A run writes `metrics.jsonl` to its folder: one JSON object a line, each of one of these kinds. This page is written\n"
        "from the types that write and read them; a field with the default `nothing` is left out where it has no value.\n"
    )
    yield f"{inspect.cleandoc(names.__doc__ or '')}\n".replace("\n\n", "\n\n```\n", 1) + "```\n"
    for record in (StatisticsRecord, BaselinesRecord, RoundRecord, EvaluationRecord, AbandonedRecord, ResultRecord):
        yield f"## `{record.model_fields['kind'].default}`\n"
        yield f"{record.__doc__}\n"
        fields = sorted(record.model_fields, key=lambda name: name not in ("kind", "round"))
        yield from _table(record, [name for name in fields if name != "kind"], "field")


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    yield "# Commands\n"
    yield (
        "This page is written from the commands' own help: `tessera --help`, and `--help` behind any command, show the same.\n"
        "A command ends with exit code 0 when it did its work, and 1 when it says what is wrong.\n"
    )
    yield from _command(typer.main.get_command(app), "tessera", click.Context(typer.main.get_command(app)))


def _command(command: click.Command, name: str, context: click.Context) -> Iterator[str]:
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            _, found, _ = command.resolve_command(context, [below])
            if found is not None and not found.hidden:
                yield from _command(found, f"{name} {below}", click.Context(found, parent=context))
        return
    yield f"## {name}\n"
    yield _escaped(re.sub(r"\s*\f\s*", "\n", (command.help or "").strip())) + "\n"
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    if rows := [row for parameter in shown if (row := _parameter(parameter, context))]:
        yield "| argument or option | |\n|---|---|"
        yield from rows
        yield ""
    if command.epilog:
        example = re.sub(r"^Examples?:\s*", "", command.epilog)
        yield "\n".join("    " + line.strip() for line in example.split("   |   ")) + "\n"


def _parameter(parameter: click.Parameter, context: click.Context) -> str:
    if "--help" in parameter.opts:
        return ""
    value = (parameter.make_metavar(context) or "").replace("INTEGER RANGE", "N").replace("FLOAT RANGE", "NUMBER")
    flag = getattr(parameter, "is_flag", False) or getattr(parameter, "count", False)
    names = (
        value if isinstance(parameter, click.Argument) else ", ".join(parameter.opts) + ("" if flag else f" {value}")
    )
    about = _escaped(getattr(parameter, "help", None) or "")
    default = parameter.default
    if default not in (None, False, (), []) and not callable(default) and not flag and "/" not in str(default):
        about += f" Default: `{getattr(default, 'value', default)}`."
    if isinstance(parameter, click.Option) and parameter.required:
        about += " Needed."
    return f"| `{names}` | {_cell(about.strip())} |"


def _escaped(text: str) -> str:
    return (
        " ".join(text.split()) if "\n\n" not in text else "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))
    )
