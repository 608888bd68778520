"""The commands `tessera data ...`: convert raw data, describe datasets, generate the demo shop, share users out."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from tessera.common.config.loading import load_settings
from tessera.common.data.folder_kinds import DATASET, other_than_data
from tessera.common.datasets import convert_aspects_shop, convert_shop, describe
from tessera.common.datasets.aspects_shop import FACTORS, KINDS, N_PEOPLE
from tessera.common.datasets.demo_shop import N_ITEMS, N_USERS
from tessera.common.datasets.published_counts import in_the_paper, verdict
from tessera.common.encoders import Encoder, make_encoder
from tessera.common.errors import DataError
from tessera.common.registry.converters import CONVERTERS
from tessera.deploy.api.datasets import convert_as
from tessera.deploy.api.tables import print_table
from tessera.deploy.api.work import Work
from tessera.deploy.cli.datasets.catalogue import app as catalogue_app
from tessera.deploy.cli.encode import EPILOG, encode_command
from tessera.deploy.executors.run import partition_for
from tessera.deploy.provisioning.partition import partition

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Convert raw data into datasets, describe them, share them out."
)
console = Console()
app.command("encode", epilog=EPILOG)(encode_command)
app.add_typer(catalogue_app, name="catalogue")

SHOP_EPILOG = "Example: tessera data shop data/shop --items 1600 --users 500 --seed 0"
ASPECTS_EPILOG = "Example: tessera data aspects-shop data/aspects --kinds 4 --people 600 --seed 0"
DESCRIBE_EPILOG = "Examples: tessera data describe data/ml   |   tessera data describe raw/ml-1m"
CONVERT_EPILOG = (
    "Examples: tessera data convert movielens raw/ml-latest-small data/ml --images   |   "
    "tessera data convert table events.parquet data/mine --user-column customer --item-column sku --encode builtin"
)

CONVERT_HELP = "\n\n".join(
    (
        "Convert the raw data at SOURCE into a dataset at DESTINATION: all of it or, when something is malformed, nothing.",
        "KIND says what SOURCE holds:",
        *(f"{kind}: {spec.help}." for kind, spec in CONVERTERS.builtin.items()),
        "Kinds that other packages offer are listed by tessera data kinds. The counts of a dataset that the FedVLR paper uses "
        "are printed beside the paper's.",
    )
)

Encode = Annotated[
    str | None, typer.Option(help="Encode texts and pictures: builtin, or an open_clip model such as ViT-B-32.")
]
Pretrained = Annotated[str | None, typer.Option(help="Weights of the open_clip model: a checkpoint or name.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a dataset that is already there.")]
Least = typer.Option(min=0, show_default="5", help="Drop those with fewer events, until none is left.")
Column = typer.Option(help="What a table of your own calls it.")


@app.command("convert", help=CONVERT_HELP, epilog=CONVERT_EPILOG)
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
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Count pictures that are not there or cannot be read as missing.")
    ] = False,
    user_column: Annotated[str | None, Column] = None,
    item_column: Annotated[str | None, Column] = None,
    timestamp_column: Annotated[str | None, Column] = None,
    rating_column: Annotated[str | None, Column] = None,
    title_column: Annotated[str | None, Column] = None,
    text_column: Annotated[str | None, Column] = None,
    image_column: Annotated[str | None, Column] = None,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Rows without timestamps stand in the order in which they happened.")
    ] = False,
    genres: Annotated[bool, typer.Option("--genres", help="Let an item's text begin with its genres.")] = False,
    user_share: Annotated[
        float | None, typer.Option(show_default="1", help="Keep a share of the users, drawn by a hash of their id.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert raw data of any kind into a dataset: see `CONVERT_HELP`."""
    options: dict[str, Any] = {
        "min_user_events": min_user_events,
        "min_item_events": min_item_events,
        "min_rating": min_rating,
        "images": images or None,
        "skip_unreadable": skip_unreadable or None,
        "user_column": user_column,
        "item_column": item_column,
        "timestamp_column": timestamp_column,
        "rating_column": rating_column,
        "title_column": title_column,
        "text_column": text_column,
        "image_column": image_column,
        "in_order": in_order or None,
        "genres": genres or None,
        "user_share": user_share,
    }
    with Work(console, f"converting {kind} data") as work:
        about = convert_as(_option, kind, source, destination, overwrite, encode, pretrained, options, work.counted)
    _show(destination)
    _beside_the_paper(about)


def _option(name: str) -> str:
    """How the command line calls an option."""
    return "--" + name.replace("_", "-")


@app.command("kinds", epilog="Example: tessera data kinds")
def kinds_command() -> None:
    """List the kinds of raw data that can be converted, those of other installed packages too, and the options of each."""
    table = Table("kind", "what SOURCE is", "options")
    for kind, spec in CONVERTERS.items():
        table.add_row(kind, spec.help, ", ".join(spec.options))
    print_table(console, table)


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


@app.command("aspects-shop", epilog=ASPECTS_EPILOG)
def aspects_shop_command(
    destination: Path,
    kinds: Annotated[int, typer.Option(min=1, help="Kinds of people, each with a side of the items.")] = KINDS,
    factors: Annotated[int, typer.Option(min=1, help="Numbers in a side.")] = FACTORS,
    people: Annotated[int, typer.Option(min=1)] = N_PEOPLE,
    mixed: Annotated[bool, typer.Option("--mixed", help="People go by several sides, by shares.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Generate at DESTINATION a shop in which each person goes by a known side of the items."""
    convert_aspects_shop(destination, kinds, factors, people, mixed, seed, overwrite)
    _show(destination)


@app.command("partition", epilog="Example: tessera data partition data/shop devices --nodes 3")
def partition_command(
    dataset: Path,
    out: Path,
    nodes: Annotated[int, typer.Option(min=1, help="Number of device folders.")] = 2,
    config: Annotated[
        Path | None, typer.Option(help="Settings of a run with towers: give out what it needs too.")
    ] = None,
) -> None:
    """Divide the users of DATASET among device folders below OUT: their own events and the items' titles, no features.

    With the settings of a run whose devices adapt towers, each folder also gets features and the tower of its class. It is
    for trying a federation on separate machines with data that lie in one place.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out} exists and is not empty: choose another folder")
    settings = load_settings(config, "grpc", [f"federation.nodes={nodes}"]) if config else None
    for folder in partition_for(dataset, out, settings) if settings else partition(dataset, out, nodes):
        console.print(str(folder), soft_wrap=True, highlight=False)


@app.command("describe", epilog=DESCRIBE_EPILOG)
def describe_command(folder: Annotated[Path, typer.Argument(help="A dataset, or raw data.")]) -> None:
    """Say what the dataset in FOLDER holds, where it comes from and how it is split; of raw data, which converter fits."""
    if (folder / DATASET).exists():
        _show(folder)
    else:
        _recognised(folder)


def _recognised(source: Path) -> None:
    """Say which converters fit raw data, and how they are called. Raises `DataError` where none does."""
    from tessera.common.datasets.recognise import no_dataset, recognise

    found = [] if other_than_data(source) else recognise(source)
    if not found:
        raise no_dataset(source)
    console.print(
        f"{source} holds raw data, not a dataset. To convert it:", markup=False, highlight=False, soft_wrap=True
    )
    for fit in found:
        console.print(f"    {fit.command}\n        {fit.why}", markup=False, highlight=False, soft_wrap=True)


def _encoder(encode: str | None, pretrained: str | None) -> Encoder | None:
    """The encoder that was asked for, if any."""
    if encode is not None:
        return make_encoder(encode, pretrained=pretrained)
    if pretrained is not None:
        raise DataError("--pretrained needs a model: pass --encode, such as --encode ViT-B-32")
    return None


def _show(folder: Path) -> None:
    """Print the description of a dataset as tables."""
    about = describe(folder)
    for table in (_facts(about), _modalities(about)):
        print_table(console, table)
    for rule in about["rules"]:
        console.print(f"- {rule}", highlight=False, markup=False)


def _facts(about: dict[str, Any]) -> Table:
    """Counts, sparsity, events of a user, split."""
    table = Table("what", "how much", title=f"{about['name']} ({about['kind']}, from {about['source']})")
    for name, count in about["counts"].items():
        table.add_row(name, f"{count:,}")
    if versions := about.get("catalogue"):
        table.add_row("version of the catalogue", str(versions["version"]))
        table.add_row("retired items", f"{versions['history'][-1]['retired_items']:,}")
    if "split" not in about:
        return table
    split = about["split"]
    table.add_row("sparsity", f"{about['sparsity']:.2%}")
    table.add_row("events of a user: least, quartiles, most", " / ".join(f"{n:g}" for n in about["events_per_user"]))
    for reason, count in about.get("dropped", {}).items():
        table.add_row(f"dropped: {reason}", f"{count:,}")
    table.add_row(f"split ({split['rule']})", " / ".join(f"{split[p]:,}" for p in ("train", "validation", "test")))
    table.add_row("test targets that training never shows", f"{split['cold_targets']:.1%}")
    tied = " / ".join(f"{split['tied'][part]:.1%}" for part in ("validation", "test"))
    table.add_row("validation / test targets that time does not decide on", tied)
    return table


def _modalities(about: dict[str, Any]) -> Table:
    """One row a modality."""
    names = ("modality", "encoder", "dim", "type", "missing", "sha256")
    table = Table(*names, title="features", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.columns[1].overflow = "fold"
    for name, features in about["features"].items():
        shown = (features["encoder"], features["dim"], features["dtype"], features["missing"], features["sha256"][:8])
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
    print_table(console, table)
    console.print(verdict(paper, about), highlight=False, markup=False)
