"""`tessera data`: convert raw data, describe datasets, generate the demo shop."""

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from tessera.common.config.loading import load_settings
from tessera.common.config.settings import DataSettings
from tessera.common.datasets import Columns, Options, convert, convert_shop, describe
from tessera.common.datasets.demo_shop import N_ITEMS, N_USERS
from tessera.common.datasets.published_counts import in_the_paper, verdict
from tessera.common.encoders.base import Encoder
from tessera.common.encoders.builtin import BuiltinEncoder
from tessera.common.encoders.clip import ClipEncoder
from tessera.common.errors import ConfigError, DataError
from tessera.deploy.cli.encode import EPILOG, encode_command
from tessera.deploy.executors.run import partition_for
from tessera.deploy.job import partition

app = typer.Typer(no_args_is_help=True, help="Convert raw data into datasets, describe them, generate the demo shop.")
console = Console()
app.command("encode", epilog=EPILOG)(encode_command)

UNFILTERED = {
    "fedvlr": "its authors' own split has to stay whole",
    "shop": "it is generated",
    "questions": "every movie counts",
}
SHOP_EPILOG = "Example: tessera data shop data/shop --items 1600 --users 500 --seed 0"
DESCRIBE_EPILOG = "Example: tessera data describe data/ml"
CONVERT_EPILOG = (
    "Examples: tessera data convert movielens raw/ml-latest-small data/ml --images   |   "
    "tessera data convert table events.parquet data/mine --user-column customer --item-column sku --encode builtin"
)

Encode = Annotated[
    str | None, typer.Option(help="Encode texts and pictures: builtin, or an open_clip model such as ViT-B-32.")
]
Pretrained = Annotated[str | None, typer.Option(help="Weights of the open_clip model: a checkpoint or name.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is already there.")]
Least = typer.Option(min=0, show_default="5", help="Drop those with fewer events, until none is left.")


@app.command("convert", epilog=CONVERT_EPILOG)
def convert_command(
    kind: str,
    source: Path,
    destination: Path,
    min_user_events: Annotated[int | None, Least] = None,
    min_item_events: Annotated[int | None, Least] = None,
    min_rating: Annotated[float | None, typer.Option(min=0, show_default="0", help="Drop events rated lower.")] = None,
    images: Annotated[bool, typer.Option("--images", help="Copy the pictures into the dataset.")] = False,
    encode: Encode = None,
    pretrained: Pretrained = None,
    user_column: Annotated[str, typer.Option(help="Its name in a table.")] = "user",
    item_column: Annotated[str, typer.Option(help="Its name in a table.")] = "item",
    timestamp_column: Annotated[str, typer.Option(help="Its name in a table.")] = "timestamp",
    rating_column: Annotated[str, typer.Option(help="Its name in a table.")] = "rating",
    overwrite: Overwrite = False,
) -> None:
    """Convert the raw data at SOURCE into a dataset at DESTINATION: all of it or, when something is malformed, nothing.

    KIND says what SOURCE holds. movielens: a folder with ratings.csv. amazon: one with reviews and metadata of the 2014,
    2018 or 2023 release, .json or .jsonl, gzipped or not, and optionally images/ASIN.jpg. ninerec: one with NAME_pair.csv,
    NAME_item.csv and NAME_cover/. fedvlr: one with inter.csv, its split included. sequences: a text file, one line a
    user. table: events.csv or .parquet of your own, and optionally items.csv and MODALITY_features.npy with
    MODALITY_ids.npy. shop: nothing, the demo shop is generated; SOURCE is -. questions: a MovieLens folder with overviews
    and posters, of which a benchmark of many tasks is made.

    The counts of a dataset that the FedVLR paper uses are printed beside the paper's.
    """
    given = {"min_user_events": min_user_events, "min_item_events": min_item_events, "min_rating": min_rating}
    filters = {name: value for name, value in given.items() if value is not None}
    if filters and kind in UNFILTERED:
        option = next(iter(filters)).replace("_", "-")
        raise DataError(f"no filter applies to {kind}, {UNFILTERED[kind]}: leave out --{option}")
    try:
        settings = DataSettings(folder=str(source), **filters)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(f"--min-rating: {error.errors()[0]['msg']}") from None
    columns = Columns(user_column, item_column, timestamp_column, rating_column)
    options = Options(images, _encoder(encode, pretrained), columns)
    about = convert(kind, source, destination, settings, options, overwrite)
    _show(destination)
    _beside_the_paper(about)


@app.command("shop", epilog=SHOP_EPILOG)
def shop_command(
    destination: Path,
    items: Annotated[int, typer.Option(min=1)] = N_ITEMS,
    users: Annotated[int, typer.Option(min=1)] = N_USERS,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    encode: Encode = None,
    pretrained: Pretrained = None,
    overwrite: Overwrite = False,
) -> None:
    """Generate the demo shop at DESTINATION: items with pictures and titles, users whose reliance on them is known."""
    convert_shop(destination, items, users, seed, overwrite, _encoder(encode, pretrained))
    _show(destination)


@app.command("deal", epilog="Example: tessera data partition data/shop devices --nodes 3")
def partition_command(
    dataset: Path,
    out: Path,
    nodes: Annotated[int, typer.Option(min=1, help="Number of device folders.")] = 2,
    config: Annotated[Path | None, typer.Option(help="Settings of a run with towers: deal what it needs too.")] = None,
) -> None:
    """Deal the people of DATASET out to device folders below OUT: their own events and the items' titles, no features.

    With the settings of a run whose devices adapt towers, each folder also gets features and the tower of its class. It is
    for trying a federation on separate machines with data that lie in one place.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} exists and is not empty: choose another folder")
    settings = load_settings(config, "grpc", [f"federation.nodes={nodes}"]) if config else None
    for folder in partition_for(dataset, out, settings) if settings else partition(dataset, out, nodes):
        console.print(str(folder), soft_wrap=True, highlight=False)


@app.command("describe", epilog=DESCRIBE_EPILOG)
def describe_command(folder: Path) -> None:
    """Say what the dataset in FOLDER holds, where it comes from and how it is split."""
    _show(folder)


def _encoder(encode: str | None, pretrained: str | None) -> Encoder | None:
    """The encoder that was asked for, if any."""
    if encode is None:
        if pretrained is not None:
            raise DataError("--pretrained needs a model: pass --encode, such as --encode ViT-B-32")
        return None
    if encode == "builtin":
        return BuiltinEncoder()
    if pretrained is None:
        raise DataError(f"--encode {encode}: write builtin, or an open_clip model together with --pretrained")
    return ClipEncoder(encode, pretrained)


def _show(folder: Path) -> None:
    """Print the description of a dataset as tables."""
    about = describe(folder)
    for table in (_facts(about), _modalities(about)):
        console.print(table)
    for rule in about["rules"]:
        console.print(f"- {rule}", highlight=False, markup=False)


def _facts(about: dict[str, Any]) -> Table:
    """Counts, sparsity, events of a user, split."""
    table = Table("what", "how much", title=f"{about['name']} ({about['kind']}, from {about['source']})")
    for name, count in about["counts"].items():
        table.add_row(name, f"{count:,}")
    if "split" not in about:
        return table
    split = about["split"]
    table.add_row("sparsity", f"{about['sparsity']:.2%}")
    table.add_row("events of a user: least, quartiles, most", " / ".join(f"{n:g}" for n in about["events_per_user"]))
    for reason, count in about.get("dropped", {}).items():
        table.add_row(f"dropped: {reason}", f"{count:,}")
    table.add_row(f"split ({split['rule']})", " / ".join(f"{split[p]:,}" for p in ("train", "validation", "test")))
    table.add_row("test targets that training never shows", f"{split['cold_targets']:.1%}")
    return table


def _modalities(about: dict[str, Any]) -> Table:
    """One row a modality."""
    table = Table("modality", "encoder", "dim", "type", "missing", "sha256", title="features")
    for name, features in about["features"].items():
        shown = (features["encoder"], features["dim"], features["dtype"], features["missing"], features["sha256"][:12])
        table.add_row(name, *map(str, shown))
    if not about["features"]:
        table.add_row("none", "no features: only item embeddings can be learnt (--encode makes some)")
    return table


def _beside_the_paper(about: dict[str, Any]) -> None:
    """Print the paper's counts of the same dataset, if it has it, beside ours."""
    paper = in_the_paper(about)
    if paper is None:
        return
    table = Table("", "users", "items", "interactions", title=f"{paper.name} in Table 1 of the FedVLR paper")
    ours = (about["counts"][name] for name in ("users", "items", "interactions"))
    for who, counts in (("paper", (paper.users, paper.items, paper.interactions)), ("here", ours)):
        table.add_row(who, *(f"{count:,}" for count in counts))
    console.print(table)
    console.print(verdict(paper, about), highlight=False, markup=False)
