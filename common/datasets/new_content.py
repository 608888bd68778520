"""Reads what is to be added to a catalogue or changed in it: items of a table, and their features, computed or given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np
import polars as pl

from tessera.common.data.catalogue import Catalogue, Features
from tessera.common.data.pictures import picture_path
from tessera.common.datasets.raw import RawFeatures, checked, read_features, read_items
from tessera.common.encoders import Encoder, encoder_of
from tessera.common.encoders.base import encode_images, encode_texts
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_tensors

COLUMNS = ("item", "title", "text", "image")


class Made(StrEnum):
    """What became of a modality's features of the items concerned."""

    encoded = "encoded"
    given = "given"
    missing = "missing"


@dataclass(frozen=True)
class NewContent:
    """Items of the table at `path`, with columns item, title, text and image (a path below the table's folder, or "").

    `given` are ready features by modality. `encoder` computes the others, those of pictures and texts; without it the one does
    that computed the dataset's, with `pretrained` weights where it needs any. What neither gives is missing.
    """

    path: Path
    items: pl.DataFrame
    given: Mapping[str, RawFeatures] = field(default_factory=dict)
    encoder: Encoder | None = None
    pretrained: str | None = None

    @classmethod
    def read(
        cls, path: Path, features: Path | None = None, encoder: Encoder | None = None, pretrained: str | None = None
    ) -> "NewContent":
        """Read a CSV or parquet table, and the features in a folder: MODALITY_features.npy with MODALITY_ids.npy, or
        MODALITY.safetensors, whose "features" [n_items, n_features] have a row for each item of the table.

        Raises `DataError` that names file, row and item.
        """
        items = read_items(path, {name: name for name in COLUMNS})
        if items.is_empty():
            raise DataError(f"{path} names no item")
        if blank := [row for row, item in enumerate(items["item"].to_list(), 1) if not item.strip()]:
            raise DataError(f"{path} row {blank[0]}: item is empty")
        given = {} if features is None else _given(features, tuple(items["item"].to_list()))
        return cls(path, items, given, encoder, pretrained)

    def gives(self, item: str) -> bool:
        """Whether there are ready features of an item."""
        return any(item in one.ids for one in self.given.values())

    def features(
        self, catalogue: Catalogue, dataset: Path, rows: Sequence[int], columns: Mapping[str, Sequence[str]]
    ) -> tuple[dict[str, Features], dict[str, Made]]:
        """Features of the items in `rows` of the table, by each of the catalogue's modalities, and what became of them.

        `columns` hold the titles, texts and pictures to encode. Raises `DataError` for features that do not fit.
        """
        if strange := sorted(self.given.keys() - catalogue.features.keys()):
            known = ", ".join(catalogue.features) or "none"
            raise DataError(
                f"{self.given[strange[0]].source}: {dataset} has no modality {strange[0]!r} (it has {known})"
            )
        ids = [self.items["item"][row] for row in rows]
        found, made = {}, {}
        for name, before in catalogue.features.items():
            new = (
                _rows(self.given[name], ids)
                if name in self.given
                else self._encoded(name, before, dataset, ids, columns)
            )
            if new is not None and new.values.shape[1] != before.values.shape[1]:
                raise DataError(
                    f"features {name!r} have {new.values.shape[1]} columns, those of {dataset} {before.values.shape[1]}"
                )
            there = new is not None and bool(new.present.any())
            made[name] = (Made.given if name in self.given else Made.encoded) if there else Made.missing
            nothing = np.zeros((len(ids), before.values.shape[1]), dtype=before.values.dtype)
            found[name] = new if new is not None else Features(nothing, np.zeros(len(ids), dtype=bool), before.encoder)
        return found, made

    def _encoded(
        self, name: str, before: Features, dataset: Path, ids: Sequence[str], columns: Mapping[str, Sequence[str]]
    ) -> Features | None:
        """Encode pictures or texts as the dataset's were; None where there are none, or nobody knows how that was."""
        content = columns["image"] if name == "image" else [*columns["title"], *columns["text"]]
        if name not in ("image", "text") or not any(content):
            return None
        encoder = self.encoder or encoder_of(before.encoder, dataset / "towers", self.pretrained)
        if encoder is None:
            return None
        own = encoder.image_name if name == "image" else encoder.text_name
        if own != before.encoder:
            raise DataError(
                f"the features {name!r} of {dataset} are by {before.encoder}, this encoder is {own}: encode the new items as "
                "the others were, or all of them anew (tessera data encode)"
            )
        if name == "image":
            paths = [picture_path(self.path.parent, *one) for one in zip(ids, columns["image"], strict=True)]
            return encode_images(encoder, ids, paths)
        return encode_texts(encoder, columns["title"], columns["text"])


def _given(folder: Path, items: tuple[str, ...]) -> dict[str, RawFeatures]:
    """Ready features in a folder, by modality."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder of features")
    found = read_features(folder, {})
    for path in sorted(folder.glob("*.safetensors")):
        tensors, metadata = read_tensors(path)
        values = tensors["features"].float().numpy() if "features" in tensors else np.zeros(0)
        if values.ndim != 2 or len(values) != len(items):
            raise DataError(
                f"{path} needs a tensor 'features' with a row for each of the {len(items)} items of the table"
            )
        present = tensors["present"].bool().numpy() if "present" in tensors else np.ones(len(items), dtype=bool)
        ids = tuple(item for item, there in zip(items, present, strict=True) if there)
        found[path.stem] = checked(ids, values[present], metadata.get("encoder", "unknown"), path)
    if not found:
        raise DataError(
            f"{folder} holds no features: MODALITY_features.npy with MODALITY_ids.npy, or MODALITY.safetensors"
        )
    for modality in found.values():
        if strange := [item for item in modality.ids if item not in set(items)]:
            raise DataError(
                f"{folder / modality.source} has a row for item {strange[0]!r}, which the table does not name"
            )
    return found


def _rows(given: RawFeatures, items: Sequence[str]) -> Features:
    """Ready features in the order of `items`, zero and not present where there are none."""
    row_of = {item: row for row, item in enumerate(given.ids)}
    rows = np.array([row_of.get(item, -1) for item in items])
    values = given.values[rows].copy()
    values[rows < 0] = 0
    return Features(values, rows >= 0, given.encoder)
