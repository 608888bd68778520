"""Finds the dataset that a run asks for; raw data are converted once and kept under `prepared/`."""

import json
import os
from pathlib import Path

import polars as pl

from tessera.common.config.settings import DataSettings, Settings
from tessera.common.data.folder_kinds import DATASET, INTERACTIONS, other_than_data
from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.converters import CONVERTED, CONVERTERS, holds_users
from tessera.common.registry.losses import LOSSES
from tessera.common.utils.atomic_files import digest, read_json

VARIABLE = "TESSERA_DATA"
PART = "part"
"""The column of the events in which data say their split."""
SHOWN = 8
"""Folders that are named where the right one is not among them, at most."""
NO_CONVERSION = {
    "cold_items",
    "cold_users",
    "validation_from",
    "test_from",
    "validation_share",
    "test_share",
    "split_seed",
}
"""Settings of the data that change nothing about a conversion."""


def prepared_dataset(settings: DataSettings, data: Path | None, cache: Path = Path("prepared")) -> Path:
    """Return the converted dataset's folder. Raises `DataError` that says where it was looked for.

    `data` is the dataset's own folder or the one that holds it; without it, TESSERA_DATA. The generated shop needs neither.
    A conversion is found again by its settings and by the names, sizes and times of the raw files. Data without users, to
    which no filter applies, may also be there converted.
    """
    if settings.kind == CONVERTED:
        source = _source(settings, data)
        if not (source / DATASET).is_file():
            raise DataError(
                other_than_data(source)
                or f"{source} is not a converted dataset: convert it (tessera data convert), or name its kind in the config"
            )
        return source
    source = _source(settings, data) if CONVERTERS[settings.kind].needs_source else Path("generated")
    if not holds_users(settings.kind) and (source / DATASET).is_file():
        if read_json(source / DATASET).get("kind") != settings.kind:
            raise DataError(f"{source} is a converted dataset, but not of the kind {settings.kind}")
        return source
    kept = settings.model_dump_json(exclude=NO_CONVERSION)
    key = digest((kept + json.dumps(_listing(source))).encode())[:12]
    destination = cache / f"{Path(settings.folder).name}-{key}"
    if not (destination / DATASET).is_file():
        _convert(source, destination, settings)
    return destination


def check_split(dataset: Path, data: DataSettings) -> None:
    """Raise `ConfigError` where the data say their own split and nobody has said whether to go by it: neither is what everybody
    would expect."""
    events = dataset / INTERACTIONS
    if "split" in data.model_fields_set or data.cold_items or not events.is_file():
        return
    if PART in pl.read_parquet_schema(events):
        raise ConfigError(
            f"the events of {dataset} say what they are for (training, validation, test), and the settings do not say whether "
            "to go by that: set data.split to given, or to leave-one-out to hold out each person's last events instead"
        )


def check_order(dataset: Path, settings: Settings) -> None:
    """Raise `ConfigError` where settings go by the order of events, and the data do not know it; and for `check_split`."""
    if not settings.asks_questions:
        check_split(dataset, settings.data)
    about = read_json(dataset / DATASET) if (dataset / DATASET).is_file() else {}
    if settings.asks_questions or about.get("timed", True):
        return
    keys = ["local.recency"] if settings.local.recency else []
    keys += [f"local.loss {settings.local.loss.name}"] if LOSSES[settings.local.loss.name].next_item else []
    if keys:
        raise ConfigError(
            f"{keys[0]} goes by the order of events, and no event of {dataset} says when it happened: set local.recency to 0 "
            "and a loss such as softmax, or convert data with timestamps (or with --in-order, where rows are in order)"
        )


def _convert(source: Path, destination: Path, settings: DataSettings) -> None:
    """Convert as a run's settings ask."""
    from tessera.common.datasets import Options, convert
    from tessera.common.encoders import make_encoder

    options = Options(
        settings.min_user_events,
        settings.min_item_events,
        settings.min_rating,
        encode=make_encoder(settings.encode) if settings.encode else None,
        user_share=settings.user_share,
        shop_seed=settings.shop_seed,
    )
    convert(settings.kind, source, destination, options)


def _source(settings: DataSettings, data: Path | None) -> Path:
    root = data or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if root is None:
        raise DataError(f"where is {settings.folder!r}? Pass --data, or set {VARIABLE} to the folder that holds it")
    if (root / settings.folder).is_dir():
        return root / settings.folder
    where = f"--data {root}" if data else f"{VARIABLE} {root}"
    if not root.exists():
        raise DataError(
            f"{where} does not exist: name the folder that holds {settings.folder!r}, or that folder itself"
        )
    if not root.is_dir():
        raise DataError(f"{where} is a file: name the folder that holds {settings.folder!r}, or that folder itself")
    if data is not None and _may_be(root, settings.kind):
        return root
    what = "a converted dataset" if settings.kind == CONVERTED else f"data of the kind {settings.kind}"
    there = ", ".join(sorted(path.name for path in root.iterdir() if path.is_dir())[:SHOWN])
    raise DataError(
        other_than_data(root)
        or f"there is no folder {settings.folder!r} in {where}"
        + (f", nor is it {what}" if data else "")
        + (f"; in it are {there}" if there else "")
    )


def _may_be(root: Path, kind: str) -> bool:
    """Whether a folder may be the data themselves: a dataset, or raw data that look like this kind."""
    if (root / DATASET).is_file():
        return True
    if kind == CONVERTED or not any(path.is_file() for path in root.iterdir()):
        return False
    from tessera.common.datasets.recognise import RECOGNISED, recognise

    return kind not in RECOGNISED or kind in {fit.kind for fit in recognise(root)}


def _listing(source: Path) -> list[tuple[str, int, int]]:
    files = sorted(path for path in source.glob("*") if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
