"""Turns raw data into a dataset: applies the minimum rating and the k-core, indexes items, aligns features, copies pictures."""

import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.interactions import TIES, from_frame
from tessera.common.data.pictures import picture_path
from tessera.common.datasets.raw import NO_ITEMS, Options, RawDataset, RawFeatures
from tessera.common.encoders.base import encode_images, encode_texts
from tessera.common.errors import DataError

FILTERS = ("min_user_events", "min_item_events", "min_rating", "user_share")
RULES = (
    "items are ordered by id: by number where all ids are whole numbers, as text otherwise",
    TIES,
    "of several events of the same user and item the first counts",
)
HUGE, UNEVEN = 10, 3
"""How many times as long as the median row a row is, and as the shortest, that is worth a remark."""
PARTS_RULE = "the split is given by the data's authors, so no filter applies"
UNTIMED_RULE = (
    "no event says when it happened: a hash of person and item draws what is held out, and nothing can be learnt of order "
    "(--in-order takes the order of the rows)"
)
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
    catalogue, told = build_catalogue(raw, items, folder, options)
    catalogue.save(folder)
    interactions = from_frame(indexed, len(items))
    interactions.save(folder)
    filters = {name: getattr(options, name) for name in FILTERS[: 3 + (options.user_share < 1)]}
    untimed = [] if interactions.timed else [UNTIMED_RULE]
    return {
        "source": raw.source,
        "read": len(raw.events),
        "dropped": dropped,
        "filters": {} if raw.has_parts else filters,
        "timed": interactions.timed,
        "rules": [*RULES, PARTS_RULE if raw.has_parts else FILTER_RULE, *untimed, *raw.rules, *told],
    }


def _selected(raw: RawDataset, options: Options) -> tuple[pl.DataFrame, dict[str, int]]:
    """The events that count, and how many were dropped and why. Raises `DataError` when none is left."""
    if raw.has_parts and (given := [name for name in FILTERS[:3] if name in options.given and getattr(options, name)]):
        raise DataError(f"{given[0]} has no effect where the data say their split themselves: leave it out")
    here = raw.events if options.user_share == 1 else _drawn(raw.events, options.user_share)
    rated = here if raw.has_parts else _rated(here, options.min_rating)
    first = first_events(rated)
    kept = first if raw.has_parts else k_core(first, options.min_user_events, options.min_item_events)
    if kept.is_empty():
        raise DataError(
            f"none of the {len(raw.events)} interactions is left after min_rating {options.min_rating}, "
            f"min_user_events {options.min_user_events} and min_item_events {options.min_item_events}: lower them"
        )
    sizes = [len(frame) for frame in (raw.events, here, rated, first, kept)]
    reasons = ("of users who were not drawn", "below minimum rating", "repeated", "too few events")
    dropped = {reason: before - after for reason, (before, after) in zip(reasons, pairwise(sizes), strict=True)}
    return kept, dropped if options.user_share < 1 else {name: n for name, n in dropped.items() if name != reasons[0]}


def _drawn(events: pl.DataFrame, share: float) -> pl.DataFrame:
    """The events of a share of the users, drawn by a hash of their id: a larger share has all of a smaller one's."""
    from tessera.common.utils import counter_rng

    users = events["user"].unique(maintain_order=True)
    draws = counter_rng.uniform(counter_rng.key("user share"), counter_rng.user_keys(users.to_list()))
    return events.filter(pl.col("user").is_in(users.filter(pl.Series((draws < share).numpy())).implode()))


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


def build_catalogue(
    raw: RawDataset, items: pl.DataFrame, folder: Path, options: Options
) -> tuple[Catalogue, list[str]]:
    """The items with their features, and what to say about their pictures; copies these when asked to.

    Raises `DataError` that names item and file of a picture that cannot be read, and where there is nothing to encode.
    """
    ids, titles, texts, pictures = (tuple(items[name].to_list()) for name in NO_ITEMS.columns)
    features = {name: _aligned(modality, ids) for name, modality in raw.features.items()}
    paths = [picture_path(raw.folder, item, picture) for item, picture in zip(ids, pictures, strict=True)]
    there = len(paths) - paths.count(None)
    if options.encode is not None:
        if not any((*titles, *texts)) and not there:
            raise DataError(f"there is nothing to encode in {raw.folder}: no item has a title, a text or a picture")
        if any((*titles, *texts)):
            features["text"] = encode_texts(options.encode, titles, texts)
        if there:
            encoded = encode_images(options.encode, ids, paths, options.skip_unreadable)
            paths = [path if read else None for path, read in zip(paths, encoded.present, strict=True)]
            features["image"] = encoded
    copies = [
        _copied(folder, row, item, path, options) for row, (item, path) in enumerate(zip(ids, paths, strict=True))
    ]
    lost = there - (sum(map(bool, copies)) if options.images else len(paths) - paths.count(None))
    rules = [f"pictures that are not there or cannot be read, and count as missing: {lost}"] if lost else []
    known = {name: kept for name, kept in features.items() if kept.present.any()}
    rules += [f"{name} features: {remark}" for name, kept in known.items() for remark in remarks(ids, kept)]
    return Catalogue(ids, titles, texts, tuple(copies), known), rules


def remarks(items: tuple[str, ...], features: Features) -> list[str]:
    """What is odd about a modality's rows: all alike, empty, or far longer than others, which then hardly count."""
    rows = np.flatnonzero(features.present)
    values = features.values[rows].astype(np.float64)
    norms = np.linalg.norm(values, axis=1)
    if len(rows) > 1 and (values == values[0]).all():
        return ["all rows are the same, so they tell no item from another"]
    typical, found = float(np.median(norms)), []
    if (norms == 0).any():
        found.append(
            f"rows that are all zeros: {(norms == 0).sum()}, the first of item {items[rows[norms.argmin()]]!r}"
        )
    if (norms > HUGE * typical).any():
        longest = f"the longest of item {items[rows[norms.argmax()]]!r}, {norms.max():.3g} to a median of {typical:.3g}"
        found.append(
            f"rows more than {HUGE} times as long as the median one: {(norms > HUGE * typical).sum()}, {longest}"
        )
    elif norms.max() > UNEVEN * norms[norms > 0].min(initial=np.inf):
        lengths = f"{norms[norms > 0].min():.3g} to {norms.max():.3g}"
        found.append(
            f"rows are not of one length ({lengths}), and longer ones count for more: divide each by its length"
        )
    return found


def _aligned(modality: RawFeatures, items: tuple[str, ...]) -> Features:
    """Put feature rows in the order of `items`; rows of zeros, marked absent, where there are none."""
    row_of = {item: row for row, item in enumerate(modality.ids)}
    rows = np.array([row_of.get(item, -1) for item in items], dtype=np.int64)
    values = modality.values[rows]
    values[rows < 0] = 0
    return Features(values, rows >= 0, modality.encoder)


def _copied(folder: Path, row: int, item: str, path: Path | None, options: Options) -> str:
    """Copy a picture into the dataset, named by the item's index, where asked for; return its path below `folder`, or ""."""
    if path is None or not options.images:
        return ""
    copy = f"images/{row:06d}{path.suffix.lower()}"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(path, folder / copy)
    except OSError as error:
        if options.skip_unreadable:
            return ""
        told = f"item {item!r}: picture {path} cannot be copied: {error.strerror}"
        raise DataError(f"{told}; with --skip-unreadable it counts as missing") from None
    return copy
