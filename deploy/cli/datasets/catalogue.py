"""The commands `tessera data catalogue ...`: the next version of a dataset's items, and what two versions have otherwise."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tessera.client.people.items import find_item
from tessera.common.data.catalogue import load_catalogue
from tessera.common.datasets.catalogue_versions import (
    Difference,
    Version,
    add_items,
    change_items,
    difference,
    retire_items,
)
from tessera.common.datasets.new_content import Made, NewContent
from tessera.common.encoders import make_encoder
from tessera.common.errors import DataError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Add, change and retire the items of a dataset; each makes the next version of its catalogue.\n\n"
    "Items keep their place for good and new ones come after the others, so that a run goes on with a later version by "
    "`tessera train --continue`.",
)
console = Console(highlight=False)
SHOWN = 20
"""Ids of one kind that `diff` prints; --json has all of them."""

Dataset = Annotated[Path, typer.Argument(exists=True, file_okay=False, help="The dataset's folder.")]
Table = Annotated[
    Path,
    typer.Argument(
        metavar="ITEMS.csv", help="A CSV or parquet table: item, title, text, image (a path beside the table)."
    ),
]
GivenFeatures = Annotated[
    Path | None,
    typer.Option(
        help="Folder of ready features: MODALITY_features.npy with MODALITY_ids.npy, or MODALITY.safetensors with a row for "
        "each item of the table.",
        show_default=False,
    ),
]
Model = Annotated[
    str | None, typer.Option(help="What encodes; by default what encoded the dataset.", show_default=False)
]
Pretrained = Annotated[
    str | None, typer.Option(help="Weights of an open_clip model: a checkpoint or name.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(epilog="Example: tessera data catalogue add data/shop new-items.csv")
def add(
    dataset: Dataset,
    items: Table,
    features: GivenFeatures = None,
    model: Model = None,
    pretrained: Pretrained = None,
    as_json: Json = False,
) -> None:
    """Append new items. Their pictures and texts are encoded as those of the dataset were; what cannot be is missing."""
    _show(dataset, add_items(dataset, _content(items, features, model, pretrained)), as_json)


@app.command(epilog="Example: tessera data catalogue change data/shop better-pictures.csv")
def change(
    dataset: Dataset,
    items: Table,
    features: GivenFeatures = None,
    model: Model = None,
    pretrained: Pretrained = None,
    as_json: Json = False,
) -> None:
    """Give items another title, text or picture, and the features that follow. Empty cells leave what was there."""
    _show(dataset, change_items(dataset, _content(items, features, model, pretrained)), as_json)


@app.command(epilog='Example: tessera data catalogue retire data/shop item-0017 "Halden rustic linen mug"')
def retire(
    dataset: Dataset,
    items: Annotated[
        list[str] | None, typer.Argument(metavar="ITEM...", help="Ids, titles, or parts that only one title has.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A text file with an item a line.", show_default=False)
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Take retired items back.")] = False,
    as_json: Json = False,
) -> None:
    """Take items off: they are in no training from the next run on, and recommended to nobody; people still see that they had
    them."""
    named = [*(items or ()), *(_lines(file) if file else ())]
    if not named:
        raise DataError("retire: name items, or a --file that does")
    catalogue = load_catalogue(dataset, modalities=False)
    row_of = {item: row for row, item in enumerate(catalogue.items)}
    rows = [row_of[name] if name in row_of else find_item(catalogue, name) for name in named]
    _show(dataset, retire_items(dataset, rows, back), as_json)


@app.command(epilog="Example: tessera data catalogue diff data/shop-before data/shop")
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", exists=True, file_okay=False)],
    after: Annotated[Path, typer.Argument(metavar="B", exists=True, file_okay=False)],
    as_json: Json = False,
) -> None:
    """Say what the items of B have otherwise than those of A, and whether B is a later version. Both are folders of datasets or
    devices; features are compared where both have them."""
    found = difference(load_catalogue(before), load_catalogue(after))
    if as_json:
        print(json.dumps(asdict(found)))
        return
    _show_difference(found)


def _content(items: Path, features: Path | None, model: str | None, pretrained: str | None) -> NewContent:
    encoder = make_encoder(model, pretrained=pretrained) if model else None
    return NewContent.read(items, features, encoder, pretrained)


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable text file: {error}") from None


def _show(dataset: Path, version: Version, as_json: bool) -> None:
    """Say what a new version is."""
    if as_json:
        print(json.dumps(asdict(version)))
        return
    counts = [f"{len(ids)} {what}" for what, ids in _concerned(version).items() if ids]
    said = f"{dataset}: version {version.number} of the catalogue, {version.items:,} items; {', '.join(counts)}"
    console.print(said, markup=False, soft_wrap=True)
    for name, made in version.features.items():
        if made is not Made.missing:
            console.print(f"- their {name} features are {made}", markup=False)
        elif version.added:
            console.print(f"- they have no {name} features: give some by --features", markup=False)


def _show_difference(found: Difference) -> None:
    what = "a later version of A" if found.extends else "no later version of A: items are missing, or in other rows"
    console.print(f"B is {what}")
    for name, ids in {**_concerned(found), "missing": found.missing}.items():
        if ids:
            more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
            console.print(f"{len(ids)} {name}: {', '.join(ids[:SHOWN])}{more}", markup=False, soft_wrap=True)
    if not any((*_concerned(found).values(), found.missing)):
        console.print("no item differs")


def _concerned(told: Version | Difference) -> dict[str, Sequence[str]]:
    """The ids of each kind, by what became of them."""
    return {"added": told.added, "changed": told.changed, "retired": told.retired, "taken back": told.back}
