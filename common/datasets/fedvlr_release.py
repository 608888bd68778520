"""Reads the FedVLR authors' release: inter.csv with their own split, and one feature row an item."""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from tessera.common.data.interactions import Part
from tessera.common.datasets.raw import (
    NO_ITEMS,
    NUMBER,
    WHOLE,
    Options,
    RawDataset,
    RawFeatures,
    checked,
    read_rows,
    read_values,
)
from tessera.common.errors import DataError

ENCODERS = {"image": "CLIP", "text": "CLIP"}


def read_fedvlr(source: Path, _: Options) -> RawDataset:
    """Read inter.csv (userID, itemID, rating, timestamp, split_label) and {image,text}_features.npy.

    Item i is row i of the features. Raises `DataError` that names the file and the row.
    """
    path = source / "inter.csv"
    columns = {"userID": WHOLE, "itemID": WHOLE, "timestamp": WHOLE, "split_label": WHOLE}
    events = read_rows(path, columns, {"rating": NUMBER})
    known = events["split_label"].is_in([int(part) for part in Part])
    if not known.all():
        row = int((~known).arg_max() or 0)
        raise DataError(f"{path} row {row + 1}: split_label is {events['split_label'][row]}, not 0, 1 or 2")
    events = events.rename({"userID": "user", "itemID": "item", "split_label": "part"})
    events = events.with_columns(pl.col("user", "item").cast(pl.String), pl.col("part").cast(pl.UInt8))
    _check_parts(path, events)
    features = _features(source)
    rules = ("split_label 0, 1, 2 is train, validation, test", "item i is row i of the features")
    return RawDataset(events, source, source.resolve().name, _items(features), features, rules)


def _items(features: Mapping[str, RawFeatures]) -> pl.DataFrame | None:
    """The items that have features, if there are any; of no item there is a title."""
    ids = next((modality.ids for modality in features.values()), None)
    empty = [pl.lit("", dtype=pl.String).alias(name) for name in NO_ITEMS.columns[1:]]
    return None if ids is None else pl.DataFrame({"item": ids}).with_columns(empty)


def _check_parts(path: Path, events: pl.DataFrame) -> None:
    """Refuse an event that stands in two parts: it would be trained on and asked for."""
    torn = events.filter(pl.col("part").n_unique().over("user", "item") > 1)
    if len(torn):
        raise DataError(f"{path}: user {torn['user'][0]} and item {torn['item'][0]} stand in two parts of the split")


def _features(source: Path) -> dict[str, RawFeatures]:
    """The modalities that are there; all have one row for each item."""
    features: dict[str, RawFeatures] = {}
    for name, encoder in ENCODERS.items():
        path = source / f"{name}_features.npy"
        if path.exists():
            values = read_values(path)
            features[name] = checked(tuple(map(str, range(len(values)))), values, encoder, path)
    lengths = {modality.source: len(modality.ids) for modality in features.values()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"the features in {source} are of different numbers of items: {lengths}")
    return features
