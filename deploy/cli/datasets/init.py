"""The command `tessera init`: settings for a dataset and a small grid of others, each line with why it is there."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(add_completion=False)
console = Console(highlight=False)
EPILOG = "Example: tessera init data/mine      and then: tessera bench mine-grid.yaml --data data"


@app.command(epilog=EPILOG)
def init(
    dataset: Annotated[Path, typer.Argument(help="A dataset, as tessera data convert makes it.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are already there.")] = False,
) -> None:
    """Write settings that suit a dataset, NAME.yaml, and a grid to find better ones, NAME-grid.yaml; each line says why."""
    from tessera.common.config.yaml_text import with_reasons
    from tessera.common.data.folder_kinds import DATASET
    from tessera.common.datasets import describe
    from tessera.common.datasets.first_settings import first_settings
    from tessera.common.datasets.recognise import no_dataset
    from tessera.common.errors import ConfigError
    from tessera.common.utils.atomic_files import write_bytes

    if not (dataset / DATASET).is_file():
        raise no_dataset(dataset)
    where = dataset.resolve()
    first = first_settings(describe(dataset), where.name)
    config, grid = out / f"{first.facts.run}.yaml", out / f"{first.facts.run}-grid.yaml"
    if (there := [path for path in (config, grid) if path.exists()]) and not overwrite:
        raise ConfigError(f"{there[0]} is there already: pass --overwrite to replace it, or --out another folder")
    data = dataset.parent if dataset.name == where.name else where.parent
    commands = f"tessera train {config} --data {data}", f"tessera bench {grid} --data {data}"
    best = f"tessera train runs/{first.facts.run}-grid/best.yaml --data {data}"
    headings = (
        [
            commands[0],
            "",
            f"Written by tessera init from what {dataset} has: the likeliest of the rows of {grid.name}.",
        ],
        [
            commands[1],
            best,
            "",
            f"Written by tessera init from what {dataset} has. The first command tries each row and writes the best one on",
            "validation to best.yaml; the second trains it. Take rows out, put your own in.",
        ],
    )
    for path, content, heading in zip((config, grid), (first.config(), first.grid()), headings, strict=True):
        write_bytes(path, with_reasons(*content, heading).encode())
    for told, command in (
        (f"{config}: settings that suit this dataset", commands[0]),
        (f"{grid}: {len(first.rows)} rows, of which a bench finds the best on validation", commands[1]),
        ("and the best of them", best),
    ):
        console.print(f"{told}\n    {command}", markup=False, soft_wrap=True)
