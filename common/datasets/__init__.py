"""Converters: raw data in, the one on-disk format of `common.catalogue` out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config import DataSettings
from common.datasets.folder import describe, replacing, write_description
from common.datasets.shop import N_ITEMS, N_USERS, SHARPNESS, write_shop
from common.errors import DataError

__all__ = ["KINDS", "Options", "convert", "describe"]

KINDS = ("shop",)


@dataclass(frozen=True)
class Options:
    """What only a conversion by hand can ask for; a run's settings cannot."""

    n_items: int = N_ITEMS
    n_users: int = N_USERS


def convert(
    kind: str,
    source: Path,
    destination: Path,
    settings: DataSettings,
    options: Options = Options(),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Convert raw data of `kind` at `source` into a dataset at `destination`, and return its dataset.json.

    The generated shop has no source; it takes its seed from the settings. Raises `DataError` for anything malformed,
    naming file, row and item, and leaves `destination` as it was.
    """
    if kind not in KINDS:
        raise DataError(f"there is no kind of data {kind!r}; known are {', '.join(KINDS)}")
    with replacing(destination, overwrite) as folder:
        about = _shop(folder, settings, options)
        return write_description(folder, {"name": destination.name, "kind": kind, **about})


def _shop(folder: Path, settings: DataSettings, options: Options) -> dict[str, Any]:
    """Generate the shop and say how."""
    write_shop(folder, options.n_items, options.n_users, settings.shop_seed)
    return {
        "source": "generated",
        "generator": {"seed": settings.shop_seed, "sharpness": SHARPNESS},
        "filters": {},
        "rules": ["generated items and users: no filter applies"],
    }
