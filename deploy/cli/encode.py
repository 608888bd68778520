"""The command `tessera data encode`: computes features of a dataset's own pictures and texts."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tessera.common.data.folder_kinds import DATASET
from tessera.common.datasets.encode import ENCODED, encode_dataset
from tessera.common.datasets.encode_hidden import encode_hidden
from tessera.common.encoders import make_encoder
from tessera.common.registry.encoders import ENCODERS, HUGGING_FACE, OPEN_CLIP
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.api.tables import print_table
from tessera.deploy.api.work import Work

console = Console(highlight=False)
EPILOG = (
    "Examples: tessera data encode data/ml --model ViT-B-32 --pretrained laion2b_s34b_b79k --images raw/posters   |   "
    "tessera data encode data/ml --model tiny   |   tessera data encode data/ml --model models/MiniLM --hidden"
)


class DeviceName(StrEnum):
    """Where to encode."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


NAMES = ", ".join(name for name in ENCODERS.builtin if name not in (OPEN_CLIP, HUGGING_FACE))
Model = Annotated[
    str,
    typer.Option(
        help=f"An open_clip model such as ViT-B-32, a folder of a text encoder of transformers (or hf:NAME), or one of {NAMES}."
    ),
]
Pretrained = Annotated[str | None, typer.Option(help="Weights of the open_clip model: a checkpoint or name.")]
Towers = Annotated[
    Path | None, typer.Option(help="Where CLASS/image and text.safetensors lie; DATASET/towers by default.")
]
Images = Annotated[
    Path | None, typer.Option(help="Folder of pictures named after the items' ids; the dataset's own by default.")
]
Skip = Annotated[bool, typer.Option("--skip-unreadable", help="Count pictures that cannot be read as missing.")]
Hidden = Annotated[
    bool, typer.Option("--hidden", help="Keep what each layer holds of an item too, for views.encoder iisan.")
]
Device = Annotated[DeviceName, typer.Option(help="Where to encode: with auto on a GPU, if there is one.")]


def encode_command(
    dataset: Path,
    model: Model,
    pretrained: Pretrained = None,
    towers: Towers = None,
    images: Images = None,
    skip_unreadable: Skip = False,
    device: Device = DeviceName.auto,
    hidden: Hidden = False,
) -> None:
    """Replace the features of DATASET by what a model makes of its pictures and texts.

    What was killed goes on where it was, and the old features stay until the new ones are whole. The same pictures, texts,
    model and weights are not encoded again.
    """
    if model in ENCODERS and "towers" in ENCODERS[model].options:
        towers = towers or dataset / "towers"
    encoder = make_encoder(model, pretrained=pretrained, towers=towers, device=device)
    with Work(console, "reading the dataset") as work:

        def begin(modality: str, total: int, done: int) -> Callable[[int], None]:
            return work.begin(f"encoding {modality}", total, done)

        made = encode_dataset(dataset, encoder, begin, images, skip_unreadable)
        if hidden:
            encode_hidden(dataset, encoder, begin, images)
    _show(dataset, made)


def _show(dataset: Path, made: tuple[str, ...]) -> None:
    """Print what the features of each modality are, and were made from."""
    about = read_json(dataset / DATASET)
    table = Table("modality", "encoder", "dim", "missing", "contents", "")
    for modality, source in about[ENCODED].items():
        features = about["features"][modality]
        facts = (source["encoder"], features["dim"], features["missing"], source["content_sha256"][:12])
        table.add_row(modality, *map(str, facts), "encoded" if modality in made else "as before")
    print_table(console, table)
