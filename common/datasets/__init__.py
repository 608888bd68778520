"""Converts raw data of any kind into the one on-disk format of `tessera.common.data.catalogue`, and describes datasets.

Which kinds there are says `tessera.common.registry.converters`. An offline tool: neither app imports it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from tessera.common.datasets.aspects_shop import FACTORS, KINDS, N_PEOPLE, write_world
from tessera.common.datasets.dataset_folder import describe, replacing, write_description
from tessera.common.datasets.demo_shop import N_ITEMS, N_USERS, about_shop, write_shop
from tessera.common.datasets.preprocess import prepare
from tessera.common.datasets.raw import Options
from tessera.common.encoders.base import Encoder
from tessera.common.errors import DataError
from tessera.common.registry.converters import CONVERTERS, LEAST, unused_option
from tessera.common.registry.registry import resolve

__all__ = ["Options", "convert", "convert_aspects_shop", "convert_shop", "describe"]


def convert(
    kind: str, source: Path, destination: Path, options: Options = Options(), overwrite: bool = False
) -> dict[str, Any]:
    """Convert raw data of `kind` at `source` into a dataset at `destination`, and return its dataset.json.

    `source` is not looked at where data are generated. Raises `ConfigError` for a kind that nobody offers, and `DataError`
    for an option that the kind does not use and for anything malformed, naming file, row and item; `destination` is left as
    it was.
    """
    spec = CONVERTERS[kind]
    if problem := unused_option(kind, options.given):
        raise DataError(problem)
    nothing: dict[str, Any] = {name: 0 for name in LEAST if name not in spec.options}
    options = replace(options, **nothing)
    if spec.needs_source and not source.exists():
        raise DataError(f"{source} does not exist: name the folder with the raw {kind} data")
    converter = resolve(spec.implementation)
    with replacing(destination, overwrite) as folder:
        made = converter(source, options, folder) if spec.writes else converter(source, options)
        about = made if spec.writes else prepare(made, options, folder)
        return write_description(folder, {"name": destination.resolve().name, "kind": kind, **about})


def convert_shop(
    destination: Path,
    n_items: int = N_ITEMS,
    n_users: int = N_USERS,
    seed: int = 0,
    overwrite: bool = False,
    encoder: Encoder | None = None,
) -> dict[str, Any]:
    """Generate a demo shop of any size as a dataset at `destination`, and return its dataset.json."""
    with replacing(destination, overwrite) as folder:
        write_shop(folder, n_items, n_users, seed, encoder)
        return write_description(folder, {"name": destination.resolve().name, "kind": "shop", **about_shop(seed)})


def convert_aspects_shop(
    destination: Path,
    kinds: int = KINDS,
    factors: int = FACTORS,
    people: int = N_PEOPLE,
    mixed: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Generate an aspects shop of any size as a dataset at `destination`, and return its dataset.json."""
    with replacing(destination, overwrite) as folder:
        about = write_world(folder, seed, kinds, factors, people, mixed)
        return write_description(folder, {"name": destination.resolve().name, "kind": "aspects-shop", **about})
