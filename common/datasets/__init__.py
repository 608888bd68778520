"""Converters: raw data in, the one on-disk format of `tessera.common.data.catalogue` out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tessera.common.config.settings import DataSettings
from tessera.common.datasets.amazon import read_amazon
from tessera.common.datasets.dataset_folder import describe, replacing, write_description
from tessera.common.datasets.demo_shop import N_ITEMS, N_USERS, write_shop
from tessera.common.datasets.fedvlr_release import read_fedvlr
from tessera.common.datasets.movielens import read_movielens
from tessera.common.datasets.ninerec import read_ninerec
from tessera.common.datasets.preprocess import prepare
from tessera.common.datasets.qa.build import write_questions
from tessera.common.datasets.raw import Columns, Options, RawDataset
from tessera.common.datasets.sequences import read_sequences
from tessera.common.datasets.user_table import read_tables
from tessera.common.encoders.base import Encoder
from tessera.common.errors import DataError

__all__ = ["KINDS", "Columns", "Options", "convert", "convert_shop", "describe"]

SHOP, QUESTIONS = "shop", "questions"


READERS: Mapping[str, Callable[[Path, Options], RawDataset]] = {
    "movielens": lambda source, _: read_movielens(source),
    "amazon": lambda source, _: read_amazon(source),
    "ninerec": lambda source, _: read_ninerec(source),
    "fedvlr": lambda source, _: read_fedvlr(source),
    "sequences": lambda source, _: read_sequences(source),
    "table": lambda source, options: read_tables(source, options.columns),
}
KINDS = (*READERS, SHOP, QUESTIONS)


def convert(
    kind: str,
    source: Path,
    destination: Path,
    settings: DataSettings,
    options: Options = Options(),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert raw data of `kind` at `source` into a dataset at `destination`, and return its dataset.json.

    The filters and the shop's seed are those of `settings`; no filter applies to questions, nor to the generated shop,
    which has no source. Raises `DataError` for anything malformed, naming file, row and item, and leaves `destination`
    as it was.
    """
    if kind not in KINDS:
        raise DataError(f"there is no kind of data {kind!r}; known are {', '.join(KINDS)}")
    if kind == SHOP:
        return convert_shop(destination, seed=settings.shop_seed, overwrite=overwrite, encoder=options.encoder)
    if not source.exists():
        raise DataError(f"{source} does not exist: name the folder with the raw {kind} data")
    with replacing(destination, overwrite) as folder:
        if kind == QUESTIONS:
            about = write_questions(source, folder, options)
        else:
            about = prepare(READERS[kind](source, options), folder, settings, options)
        return write_description(folder, {"name": destination.resolve().name, "kind": kind, **about})


def convert_shop(
    destination: Path,
    n_items: int = N_ITEMS,
    n_users: int = N_USERS,
    seed: int = 0,
    overwrite: bool = False,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Generate the demo shop as a dataset at `destination`, and return its dataset.json."""
    with replacing(destination, overwrite) as folder:
        write_shop(folder, n_items, n_users, seed, encoder)
        about = {"source": "generated", "seed": seed, "filters": {}, "rules": ["generated: no filter applies"]}
        return write_description(folder, {"name": destination.resolve().name, "kind": SHOP, **about})
