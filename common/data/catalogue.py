"""Reads and writes the catalogue: what is public about the items, and their features.

A dataset's folder holds

    dataset.json            what it is: name, kind, source, filters, counts, encoders and content hashes
    items.parquet           item (its id), title, text, image (a path inside the folder, or ""), one row for each index
    interactions.parquet    see `tessera.common.data.interactions`
    features/NAME.safetensors   one file a modality: "features" [n_items, n_features], "present" [n_items]
    images/                 optional raw pictures
    users.parquet           optional ground truth about generated users (demo shop)
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import digest, read_tensors, write_tensors
from tessera.common.utils.tables import read_table, write_table

if TYPE_CHECKING:
    import torch

DATASET = "dataset.json"
ITEMS = "items.parquet"
FEATURES = "features"
RESERVED = frozenset({"id", "sum", "mlp", "gate", "attention", "concat", "tower"})
"""Names of views that are not a modality's own."""
ITEM_COLUMNS = ("item", "title", "text", "image")


@dataclass(frozen=True)
class Features:
    """One modality of every item.

    `values` is [n_items, n_features] floating point; a row is meaningful only where `present` [n_items] is true.
    `encoder` names what computed them.
    """

    values: NDArray[np.floating]
    present: NDArray[np.bool_]
    encoder: str

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit each other and values that are not finite."""
        if self.values.ndim != 2 or self.present.shape != self.values.shape[:1]:
            raise DataError(f"features of shape {self.values.shape} do not fit the mask {self.present.shape}")
        finite = np.isfinite(self.values).all(axis=1) | ~self.present
        if not finite.all():
            raise DataError(f"row {int(np.argmin(finite))} of the features by {self.encoder} is not finite")

    @cached_property
    def sha256(self) -> str:
        """Content hash of values and mask, independent of the file they lie in."""
        return digest(np.ascontiguousarray(self.values).tobytes() + self.present.tobytes())

    def imputed(self) -> NDArray[np.float32]:
        """Features with missing rows replaced by the mean of those present (as the FedVLR paper does)."""
        values = self.values.astype(np.float32)
        if not self.present.any():
            raise DataError(f"no item has features by {self.encoder}")
        values[~self.present] = values[self.present].mean(axis=0)
        return values

    def standardised(self) -> NDArray[np.float32]:
        """Imputed features, centred and divided by one scale for the whole modality: mean squared norm = n_features.

        One scale, not one per column: columns that hardly vary carry noise, and must not be blown up.
        """
        values = self.imputed()
        values -= values.mean(axis=0)
        scale = float(np.sqrt((values**2).mean()))
        return values / scale if scale > 0 else values

    def take(self, rows: NDArray[np.integer]) -> "Features":
        """The same modality for a selection of items."""
        return Features(self.values[rows], self.present[rows], self.encoder)


@dataclass(frozen=True)
class Catalogue:
    """Items by index: their ids, what can be shown of them, and their features by modality."""

    items: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    images: tuple[str, ...]
    features: Mapping[str, Features] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse duplicate ids and columns or features of another length."""
        n_items = len(self.items)
        if len(set(self.items)) != n_items:
            seen: set[str] = set()
            twice = next(item for item in self.items if item in seen or seen.add(item))  # type: ignore[func-returns-value]
            raise DataError(f"item {twice!r} stands twice in the catalogue")
        for name in ("titles", "texts", "images"):
            if len(getattr(self, name)) != n_items:
                raise DataError(f"{len(getattr(self, name))} {name} do not fit {n_items} items")
        for name, features in self.features.items():
            if not re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", name) or name in RESERVED:
                raise DataError(
                    f"a modality cannot be called {name!r}: it is the name of a view; letters, digits, - and _ will do"
                )
            if len(features.values) != n_items:
                raise DataError(f"{len(features.values)} feature rows of modality {name!r} do not fit {n_items} items")

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    @cached_property
    def sha256(self) -> str:
        """Content hash of the item ids in order: two catalogues that differ in it cannot be in one federation."""
        return digest("\n".join(self.items).encode())

    def take(self, rows: NDArray[np.integer]) -> "Catalogue":
        """Keep the items of `rows`, in that order."""
        columns = ([column[row] for row in rows] for column in (self.items, self.titles, self.texts, self.images))
        items, titles, texts, images = (tuple(column) for column in columns)
        return Catalogue(items, titles, texts, images, {name: f.take(rows) for name, f in self.features.items()})

    def save(self, folder: Path) -> None:
        """Write the items and features below `folder`."""
        import torch  # only here: whoever hands out items need not wait for torch

        save_items(self, folder)
        for name, features in self.features.items():
            tensors = {"features": torch.from_numpy(features.values), "present": torch.from_numpy(features.present)}
            write_tensors(folder / FEATURES / f"{name}.safetensors", tensors, {"encoder": features.encoder})


def save_items(catalogue: Catalogue, folder: Path) -> None:
    """Write only what a device needs of the catalogue: ids, titles, texts, image paths."""
    columns = (catalogue.items, catalogue.titles, catalogue.texts, catalogue.images)
    table = {name: list(column) for name, column in zip(ITEM_COLUMNS, columns, strict=True)}
    write_table(folder / ITEMS, pl.DataFrame(table, schema=dict.fromkeys(ITEM_COLUMNS, pl.String)))


def image_and_text(catalogue: Catalogue) -> "tuple[torch.Tensor, torch.Tensor]":
    """The standardised features of pictures and texts, [n_items, n_features] each, which towers take.

    Raises `DataError` that names the modality that is missing.
    """
    import torch

    for name in ("image", "text"):
        if name not in catalogue.features:
            raise DataError(
                f"there are no {name} features, by which towers see items: convert the dataset with an encoder"
            )
    image, text = (torch.from_numpy(catalogue.features[name].standardised()) for name in ("image", "text"))
    return image, text


def load_catalogue(folder: Path, modalities: bool = True) -> Catalogue:
    """Read the catalogue below `folder`; without `modalities` only what can be shown of the items."""
    frame = read_table(folder / ITEMS, ITEM_COLUMNS)
    columns = (tuple(frame[name].cast(pl.String).fill_null("").to_list()) for name in ITEM_COLUMNS)
    features: dict[str, Features] = {}
    for path in sorted((folder / FEATURES).glob("*.safetensors")) if modalities else ():
        tensors, metadata = read_tensors(path)
        if {"features", "present"} - tensors.keys():
            raise DataError(f"{path} lacks the tensors 'features' and 'present'")
        try:
            values, present = tensors["features"].numpy(), tensors["present"].numpy()
            features[path.stem] = Features(values, present, metadata.get("encoder", "unknown"))
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    items, titles, texts, images = columns
    return Catalogue(items, titles, texts, images, features)
