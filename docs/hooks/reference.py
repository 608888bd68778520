"""Writes two pages from the code: the settings from their models, the commands from their own help."""

import re
from collections.abc import Iterator
from typing import Any

import click
import typer
from mkdocs.structure.files import File, Files

Schema = dict[str, Any]


def on_files(files: Files, config: Any) -> Files:
    """Add configuration.md and commands.md."""
    files.append(File.generated(config, "configuration.md", content="\n".join(configuration())))
    files.append(File.generated(config, "commands.md", content="\n".join(commands())))
    return files


def configuration() -> Iterator[str]:
    """The settings of a run, group by group."""
    from tessera.common.config.settings import Settings

    schema = Settings.model_json_schema()
    yield "# Settings\n"
    yield (
        "Everything that a run's YAML file may hold, group by group. This page is written from the settings' own models.\n"
        "On the command line `--set local.negatives=8` changes `negatives` in the group `local`. An unknown name is an error\n"
        "that names the nearest known one.\n"
    )
    yield from _group(schema, schema, "", "The run")


def _group(schema: Schema, group: Schema, path: str, title: str) -> Iterator[str]:
    """A group as a table of its own settings, then the groups below it."""
    yield f"## {title}\n"
    if path and (about := group.get("description")):
        yield about + "\n"
    yield from _table(schema, group)
    for name, field in group.get("properties", {}).items():
        longer = f"{path}.{name}" if path else name
        for variant, choice in _choices(schema, field):
            yield from _group(schema, choice, longer, f"`{longer}`" + (f": {variant}" if variant else ""))


def _table(schema: Schema, group: Schema) -> Iterator[str]:
    rows = [(name, field) for name, field in group.get("properties", {}).items() if not _choices(schema, field)]
    if not rows:
        return
    yield "| setting | values | default | |\n|---|---|---|---|"
    needed = group.get("required", ())
    for name, field in rows:
        about = " ".join(field.get("description", "").split())
        default = "needed" if name in needed else _plain(field.get("default"))
        yield f"| `{name}` | {_values(schema, field)} | {default} | {_cell(about)} |"
    yield ""


def _choices(schema: Schema, field: Schema) -> list[tuple[str, Schema]]:
    """The groups that a field may hold, each with the name of its variant; none where it holds a value."""
    found = []
    for option in field.get("oneOf") or field.get("anyOf") or field.get("allOf") or [field]:
        model = schema.get("$defs", {}).get(option.get("$ref", "").rsplit("/", 1)[-1], {})
        if "properties" in model:
            found.append((_variant(model), model))
    return found if len(found) > 1 else [("", model) for _, model in found]


def _variant(model: Schema) -> str:
    """The value that tells a variant from others: that of its one constant."""
    return next((str(f["const"]) for f in model["properties"].values() if "const" in f), str(model.get("title", "")))


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


def commands() -> Iterator[str]:
    """Every command with its arguments and options."""
    from tessera.deploy.cli.main import app

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
    value = parameter.make_metavar(context)
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
    return f"| `{names.replace('|', chr(92) + '|')}` | {_cell(about.strip())} |"


def _escaped(text: str) -> str:
    return (
        " ".join(text.split()) if "\n\n" not in text else "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))
    )
