"""The commands `tessera config ...`: show the settings of a run as they are resolved, and describe them to editors."""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from tessera.common.config.loading import load_settings
from tessera.common.config.settings import EXECUTORS
from tessera.deploy.cli.train import Changes

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Show the settings of a run, and describe them to editors."
)
SHOW_EPILOG = "Example: tessera config show benchmarks/demo.yaml --executor grpc --set rounds=3"
SCHEMA_EPILOG = "Example: tessera config schema > schema.json"


@app.command(epilog=SHOW_EPILOG)
def show(
    config: Annotated[Path, typer.Argument(help="Settings of the run, YAML.")],
    executor: Annotated[
        str, typer.Option(help=f"What the file says for this executor: {', '.join(EXECUTORS)}.", show_default=False)
    ] = "",
    change: Changes = None,
) -> None:
    """Print all settings of a run as they are resolved, defaults included; what has no effect in it is left out."""
    if executor and executor not in EXECUTORS:
        raise typer.BadParameter(f"{executor!r} is none of {', '.join(EXECUTORS)}", param_hint="--executor")
    settings = load_settings(config, executor, change or ())
    typer.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), nl=False)


@app.command(epilog=SCHEMA_EPILOG)
def schema() -> None:
    """Print a JSON schema of a run's YAML file, with the components of installed packages.

    An editor that knows YAML uses it where a file says `# yaml-language-server: $schema=schema.json`.
    """
    from tessera.common.config.schema import config_schema

    typer.echo(json.dumps(config_schema(), indent=2, ensure_ascii=False))
