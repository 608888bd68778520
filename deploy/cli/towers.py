"""The commands `tessera towers ...`: fit the towers of device classes on a catalogue, or cut a language model to fit a device.

A tower is an encoder of ours, small enough for a device, or somebody's model; a device class is one of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tessera.common.errors import ConfigError
from tessera.common.towers.transformer import SIZES
from tessera.deploy.api.tables import print_table
from tessera.deploy.api.work import Work

app = typer.Typer(no_args_is_help=True, add_completion=False)
console = Console(highlight=False)
READER = "reader"
KINDS = (READER, "image", "text")
FIT_EPILOG = (
    "Examples: tessera towers fit data/questions --classes tiny,small,base   |   "
    "tessera towers fit data/ml --classes tiny,base --kinds image,text"
)
PRUNE_EPILOG = "Example: tessera towers prune models/large models/small --layers 8 --texts data/words"
Classes = Annotated[str, typer.Option(help="Device classes, separated by commas.")]


@app.callback()
def towers() -> None:
    """Fit the encoders that devices adapt, one for each device class."""


@app.command("fit", epilog=FIT_EPILOG)
def fit_command(
    dataset: Path,
    classes: Classes = ",".join(SIZES),
    steps: Annotated[int, typer.Option(min=20, help="Batches to learn from.")] = 1500,
    kinds: Annotated[str, typer.Option(help=f"What towers read, separated by commas: {', '.join(KINDS)}.")] = READER,
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures named after the items' ids; the dataset's own by default.")
    ] = None,
) -> None:
    """Fit a reader of each class on the pictures and texts of DATASET: no label, nobody's events and no test item is used.

    The largest is fitted first, and smaller ones are derived from it. A fit that is there already is not repeated. Readers
    read features, as devices with adapters need; towers for image and text read raw pictures and words, and serve
    `tessera data encode`.
    """
    from tessera.server.pretraining.fit_encoders import fit_encoders
    from tessera.server.pretraining.fit_readers import fit_towers, refuse_unknown

    asked, wanted = _split(classes), _split(kinds)
    refuse_unknown("kind of tower", wanted, KINDS)
    with Work(console, "reading the dataset") as work:
        raw = tuple(kind for kind in wanted if kind != READER)
        encoders = fit_encoders(dataset, asked, raw, steps, images, work.begin) if raw else {}
        readers = fit_towers(dataset, asked, steps, work.begin) if READER in wanted else {}
    if readers:
        _show_readers({name: readers[name] for name in asked})
    if encoders:
        _show_encoders(encoders)


@app.command("prune", epilog=PRUNE_EPILOG)
def prune_command(
    model: Annotated[str, typer.Argument(help="A folder with a language model, a GGUF file, package:NAME or hf:NAME.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    layers: Annotated[int, typer.Option(min=2, help="Blocks that stay.")],
    texts: Annotated[
        Path | None, typer.Option(help="A dataset on whose titles and texts it is taught; without one it is only cut.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=2, help="Batches of the texts to learn from; 300 by default.")
    ] = None,
) -> None:
    """Make a small device class of a language model: some of its blocks, taught what all of them computed.

    Only titles and texts of the dataset's items are used, nobody's events and no question.
    """
    from tempfile import TemporaryDirectory

    from tessera.common.towers.models.folder import take_model
    from tessera.common.towers.models.load import MODEL
    from tessera.server.pretraining.pruning import STEPS, prune, require_free
    from tessera.server.pretraining.text_alignment import public_texts

    require_free(out)
    if steps and not texts:
        raise ConfigError("--steps has no effect: without --texts the model is only cut")
    with TemporaryDirectory() as made_in, Work(console, "reading the model") as work:
        words, batches = public_texts(texts, None) if texts else [], steps or STEPS
        taken = Path(made_in) / Path(model).resolve().name  # so that messages name it
        taken.mkdir(exist_ok=True)
        take_model(model, taken)
        advance = work.begin("learning", batches) if words else lambda: None
        made = prune(taken / MODEL, out, layers, words, batches, advance)
    table = Table("", "layers", "million numbers", "loss of a token of texts that nothing was learnt from")
    rows = zip(("whole", "cut", "taught"), (0, 1, 1), made.loss, strict=True)
    for name, which, loss in rows:
        if name != "taught" or words:
            shown = f"{loss:.2f}" if words else "-"
            table.add_row(name, str(made.blocks[which]), f"{made.parameters[which] / 1e6:.1f}", shown)
    print_table(console, table)


def _show_readers(told: Mapping[str, dict[str, Any]]) -> None:
    """Print how well readers answer what they were not shown."""
    table = Table(
        "class", "width", "layers", "right", "hardest", title="pretext questions about items not seen in the fit, %"
    )
    for name, about in told.items():
        right = about["accuracy"]
        hardest = min(right, key=lambda instruction: right[instruction])
        facts = (about["width"], about["depth"], f"{100 * right['all']:.1f}")
        table.add_row(name, *map(str, facts), f"{hardest}: {100 * right[hardest]:.0f}")
    print_table(console, table)


def _show_encoders(told: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    """Print how close towers come to where items lie that they were not shown."""
    table = Table("class", "reads", "width", "layers", "cosine", "one of four, %", title="items not seen in the fit")
    for (name, kind), about in told.items():
        facts = (about["width"], about["depth"], f"{about['cosine']:.2f}", f"{100 * about['retrieval']:.1f}")
        table.add_row(name, kind, *map(str, facts))
    print_table(console, table)


def _split(names: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in names.split(","))
