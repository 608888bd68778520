"""Turns raw data into a dataset: applies the minimum rating and the k-core, indexes items, aligns features, copies pictures."""

import shutil
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl

from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import from_frame
from tessera.common.datasets.raw import NO_ITEMS, Options, RawDataset, RawFeatures
from tessera.common.encoders.base import encode_images, encode_texts
from tessera.common.errors import DataError

FILTERS = ("min_user_events", "min_item_events", "min_rating")
RULES = (
    "items are ordered by id: by number where all ids are whole numbers, as text otherwise",
    "events of a user with equal timestamps are ordered by item",
    "of several events of the same user and item the first counts",
)
PARTS_RULE = "the split is given by the data's authors, so no filter applies"
FILTER_RULE = "events below the minimum rating go first, then users and items with too few events, until none is left"


def prepare(raw: RawDataset, options: Options, folder: Path) -> dict[str, Any]:
    """Filter, index and write raw data below `folder`; return what dataset.json says about it.

    Raises `DataError` for an item that is not known, and when nothing is left.
    """
    items = _known_items(raw)
    events, dropped = _selected(raw, options)
    if options.min_item_events and not raw.has_parts:
        items = items.join(events.select("item").unique(), on="item", how="semi")
    items = ordered(items)
    rows = pl.DataFrame({"item": items["item"], "row": np.arange(len(items))})
    indexed = events.join(rows, on="item", maintain_order="left").drop("item").rename({"row": "item"})
    build_catalogue(raw, items, folder, options).save(folder)
    from_frame(indexed, len(items)).save(folder)
    filters = {name: getattr(options, name) for name in FILTERS}
    return {
        "source": raw.source,
        "read": len(raw.events),
        "dropped": dropped,
        "filters": {} if raw.has_parts else filters,
        "rules": [*RULES, PARTS_RULE if raw.has_parts else FILTER_RULE, *raw.rules],
    }


def _selected(raw: RawDataset, options: Options) -> tuple[pl.DataFrame, dict[str, int]]:
    """The events that count, and how many were dropped and why. Raises `DataError` when none is left."""
    rated = raw.events if raw.has_parts else _rated(raw.events, options.min_rating)
    first = first_events(rated)
    kept = first if raw.has_parts else k_core(first, options.min_user_events, options.min_item_events)
    if kept.is_empty():
        raise DataError(
            f"none of the {len(raw.events)} interactions is left after min_rating {options.min_rating}, "
            f"min_user_events {options.min_user_events} and min_item_events {options.min_item_events}: lower them"
        )
    sizes = [len(frame) for frame in (raw.events, rated, first, kept)]
    reasons = ("below minimum rating", "repeated", "too few events")
    return kept, {reason: before - after for reason, (before, after) in zip(reasons, pairwise(sizes), strict=True)}


def _rated(events: pl.DataFrame, min_rating: float) -> pl.DataFrame:
    """Events of at least the minimum rating."""
    if not min_rating:
        return events
    if "rating" not in events.columns:
        raise DataError(f"min_rating {min_rating} needs ratings, and these events have none: set it to 0")
    return events.filter(pl.col("rating") >= min_rating)


def first_events(events: pl.DataFrame) -> pl.DataFrame:
    """Keep the earliest event of each user and item; of equally early ones, the first in the file."""
    earliest = (
        events.lazy()
        .with_row_index("line")
        .select("user", "item", "line", "timestamp")
        .sort("timestamp", "line")
        .unique(["user", "item"], keep="first", maintain_order=True)
        .select(pl.col("line").sort())
        .collect()
    )
    return events[earliest["line"]]


def k_core(events: pl.DataFrame, min_user_events: int, min_item_events: int) -> pl.DataFrame:
    """Drop users and items with too few events, again and again, until all that are left have enough.

    `events` has one row for each user and item, and they keep their order.
    """
    while True:
        enough = (pl.len().over("user") >= min_user_events) & (pl.len().over("item") >= min_item_events)
        kept = events.filter(enough)
        if len(kept) == len(events):
            return kept
        events = kept


def _known_items(raw: RawDataset) -> pl.DataFrame:
    """The items that the data describe. Raises `DataError` for events or features of any other."""
    if raw.items is None:
        empty = [pl.lit("", dtype=pl.String).alias(name) for name in NO_ITEMS.columns[1:]]
        items = raw.events.select("item").unique().with_columns(empty)
    else:
        items = raw.items
        unknown = raw.events.filter(~pl.col("item").is_in(items["item"].implode()))
        if len(unknown):
            first = unknown.row(0, named=True)
            raise DataError(
                f"user {first['user']!r} has an event with item {first['item']!r}, which the items of {raw.folder} lack"
            )
    known = set(items["item"].to_list())
    for modality in raw.features.values():
        strange = next((item for item in modality.ids if item not in known), None)
        if strange is not None:
            raise DataError(
                f"{raw.folder / modality.source} has a row for item {strange!r}, which the data do not know"
            )
    return items


def ordered(items: pl.DataFrame) -> pl.DataFrame:
    """Items by number where all ids are whole numbers, as text otherwise."""
    number = items["item"].cast(pl.Int64, strict=False)
    if number.null_count():
        return items.sort("item")
    return items.with_columns(number.alias("number")).sort("number", "item").drop("number")


def build_catalogue(raw: RawDataset, items: pl.DataFrame, folder: Path, options: Options) -> Catalogue:
    """The items with their features; copies the pictures when asked to."""
    ids, titles, texts, pictures = (tuple(items[name].to_list()) for name in NO_ITEMS.columns)
    features = {name: _aligned(modality, ids) for name, modality in raw.features.items()}
    encoder = options.encode
    if encoder is not None:
        if any(titles) or any(texts):
            features["text"] = encode_texts(encoder, titles, texts)
        if any(pictures):
            features["image"] = encode_images(encoder, pictures, raw.folder)
    copies = _copy(raw.folder, pictures, folder) if options.images else ("",) * len(ids)
    return Catalogue(ids, titles, texts, copies, {name: kept for name, kept in features.items() if kept.present.any()})


def _aligned(modality: RawFeatures, items: tuple[str, ...]) -> Features:
    """Put feature rows in the order of `items`; rows of zeros, marked absent, where there are none."""
    row_of = {item: row for row, item in enumerate(modality.ids)}
    rows = np.array([row_of.get(item, -1) for item in items], dtype=np.int64)
    values = modality.values[rows]
    values[rows < 0] = 0
    return Features(values, rows >= 0, modality.encoder)


def _copy(source: Path, pictures: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Copy pictures into the dataset, named by the item's index; return their paths below `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    copies = []
    for row, picture in enumerate(pictures):
        copy = f"images/{row:06d}{PurePosixPath(picture).suffix.lower()}" if picture else ""
        if picture:
            try:
                shutil.copyfile(source / picture, folder / copy)
            except OSError as error:
                raise DataError(f"picture {source / picture} cannot be copied: {error.strerror}") from None
        copies.append(copy)
    return tuple(copies)
