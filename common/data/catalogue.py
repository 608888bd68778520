"""Reads and writes the catalogue: what is public about the items, and their features.

A dataset's folder holds

    dataset.json            what it is: name, kind, source, filters, counts, encoders and content hashes
    items.parquet           item (its id), title, text, image (a path inside the folder, or ""), one row for each index;
                            retired (boolean), where any item is
    interactions.parquet    see `tessera.common.data.interactions`
    features/NAME.safetensors   one file a modality: "features" [n_items, n_features], "present" [n_items] and, in a catalogue
                            that has grown, "mean" [n_features] and "scale" [1], by which they are standardised
    images/                 optional raw pictures
    users.parquet           optional ground truth about generated users (demo shop)

A new version of a catalogue *extends* the one before: rows never move, new items are appended at the end, a changed item keeps
its row, and so does a retired one, which is marked. So whatever has a row for each item stays valid, and grows by rows.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import digest, read_tensors, write_tensors
from tessera.common.utils.changed_together import settle
from tessera.common.utils.tables import read_table, write_table

if TYPE_CHECKING:
    import torch

ITEMS = "items.parquet"
FEATURES = "features"
RESERVED = frozenset({"id", "sum", "mlp", "gate", "attention", "concat", "tower"})
"""Names of views that are not a modality's own."""
IMAGE, TEXT = "image", "text"
"""The modality that is made of an item's title and text."""
ITEM_COLUMNS = ("item", "title", "text", "image")
RETIRED = "retired"


class CatalogueVersion(BaseModel):
    """What tells one version of a catalogue from another, and whether one extends it, without the items themselves."""

    model_config = ConfigDict(frozen=True)

    n_items: int
    ids: str
    """SHA-256 of the items' ids in order: of the rows, whether retired or not."""
    sha256: str
    """SHA-256 of the ids and of which of them are retired."""


@dataclass(frozen=True)
class Standard:
    """By what a modality is standardised: what is subtracted, [n_features], and what is divided by."""

    mean: NDArray[np.float32]
    scale: float


@dataclass(frozen=True)
class Features:
    """One modality of every item.

    `values` is [n_items, n_features] floating point; a row is meaningful only where `present` [n_items] is true.
    `encoder` names what computed them. `standard` is that of the catalogue's first version, once it has grown: what a model
    learnt of the features holds only as long as they are standardised in the same way.
    """

    values: NDArray[np.floating]
    present: NDArray[np.bool_]
    encoder: str
    standard: Standard | None = None

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit each other and values that are not finite."""
        if self.values.ndim != 2 or self.present.shape != self.values.shape[:1]:
            raise DataError(f"features of shape {self.values.shape} do not fit the mask {self.present.shape}")
        if not self.values.shape[1]:
            raise DataError(f"the features by {self.encoder} have no numbers")
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

    def own_standard(self) -> Standard:
        """The mean of these very features, and their scale once it is subtracted; a scale of 1 where all are the same."""
        values = self.imputed()
        mean = values.mean(axis=0)
        scale = float(np.sqrt(((values - mean) ** 2).mean()))
        return Standard(mean, scale if scale > 0 else 1.0)

    def standardised(self) -> NDArray[np.float32]:
        """Features, centred and divided by one scale for the whole modality: mean squared norm = n_features. Missing rows are
        zero.

        One scale, not one per column: columns that hardly vary carry noise, and must not be blown up.
        """
        standard = self.standard or self.own_standard()
        values = self.values.astype(np.float32)
        values[~self.present] = standard.mean
        values -= standard.mean
        return values / np.float32(standard.scale)

    def take(self, rows: NDArray[np.integer]) -> "Features":
        """The same modality for a selection of items."""
        return Features(self.values[rows], self.present[rows], self.encoder, self.standard)


@dataclass(frozen=True)
class Catalogue:
    """Items by index: their ids, what can be shown of them, and their features by modality.

    `retired` [n_items] marks the items that are in no training and are recommended to nobody any more; None: no item is.
    """

    items: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    images: tuple[str, ...]
    features: Mapping[str, Features] = field(default_factory=dict)
    retired: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        """Refuse duplicate ids and columns or features of another length."""
        n_items = len(self.items)
        if self.retired is not None and self.retired.shape != (n_items,):
            raise DataError(f"{len(self.retired)} marks of retired items do not fit {n_items} items")
        if self.retired is not None and not self.retired.any():
            object.__setattr__(self, "retired", None)  # one way to say it
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
        """Content hash of the item ids in order, and of which are retired: what a run and its devices must agree on."""
        ids = "\n".join(self.items)
        if self.retired is None:
            return digest(ids.encode())
        return digest("\0".join([ids, *(self.items[row] for row in np.flatnonzero(self.retired))]).encode())

    @cached_property
    def version(self) -> CatalogueVersion:
        """What tells this version of the catalogue from others."""
        return CatalogueVersion(n_items=len(self), ids=digest("\n".join(self.items).encode()), sha256=self.sha256)

    def extends(self, older: "Catalogue | CatalogueVersion") -> bool:
        """Whether this catalogue begins with the items of `older`, in the same rows: it has the same ones, or more at the end.

        Which are retired may differ: an item can be retired, and be taken back.
        """
        older = older if isinstance(older, CatalogueVersion) else older.version
        return older.n_items <= len(self) and digest("\n".join(self.items[: older.n_items]).encode()) == older.ids

    def title(self, index: int) -> str:
        """What people call an item: its title or, where it has none, its id."""
        return self.titles[index] or self.items[index]

    def take(self, rows: NDArray[np.integer]) -> "Catalogue":
        """Keep the items of `rows`, in that order."""
        columns = ([column[row] for row in rows] for column in (self.items, self.titles, self.texts, self.images))
        items, titles, texts, images = (tuple(column) for column in columns)
        features = {name: f.take(rows) for name, f in self.features.items()}
        return Catalogue(items, titles, texts, images, features, None if self.retired is None else self.retired[rows])

    def save(self, folder: Path) -> None:
        """Write the items and features below `folder`."""
        import torch  # only here: whoever hands out items need not wait for torch

        save_items(self, folder)
        for name, features in self.features.items():
            tensors = {"features": torch.from_numpy(features.values), "present": torch.from_numpy(features.present)}
            if features.standard:
                tensors["mean"] = torch.from_numpy(features.standard.mean)
                tensors["scale"] = torch.tensor([features.standard.scale], dtype=torch.float64)
            write_tensors(folder / FEATURES / f"{name}.safetensors", tensors, {"encoder": features.encoder})


def save_items(catalogue: Catalogue, folder: Path) -> None:
    """Write only what a device needs of the catalogue: ids, titles, texts, image paths, and which are retired."""
    write_table(folder / ITEMS, items_frame(catalogue))


def items_frame(catalogue: Catalogue) -> pl.DataFrame:
    """The items as a table: what `items_of` reads again."""
    columns = (catalogue.items, catalogue.titles, catalogue.texts, catalogue.images)
    table = {name: list(column) for name, column in zip(ITEM_COLUMNS, columns, strict=True)}
    frame = pl.DataFrame(table, schema=dict.fromkeys(ITEM_COLUMNS, pl.String))
    return frame if catalogue.retired is None else frame.with_columns(pl.Series(RETIRED, catalogue.retired))


def items_of(path: Path, frame: pl.DataFrame, features: Mapping[str, Features] | None = None) -> Catalogue:
    """The catalogue in a table that was read from `path`, which errors name. Raises `DataError`."""
    items, titles, texts, images = (tuple(frame[name].cast(pl.String).fill_null("").to_list()) for name in ITEM_COLUMNS)
    retired = None
    if RETIRED in frame.columns:
        if frame[RETIRED].dtype != pl.Boolean:
            raise DataError(f"{path}: column {RETIRED!r} holds {frame[RETIRED].dtype}, not true and false")
        retired = frame[RETIRED].fill_null(value=False).to_numpy().copy()
    return Catalogue(items, titles, texts, images, features or {}, retired)


def sentences(titles: Sequence[str], texts: Sequence[str]) -> tuple[str, ...]:
    """An item's words as encoders read them: "title. text", or what there is of the two."""
    return tuple(". ".join(part for part in pair if part) for pair in zip(titles, texts, strict=True))


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
    settle(folder)
    frame = read_table(folder / ITEMS, ITEM_COLUMNS)
    found = sorted((folder / FEATURES).glob("*.safetensors")) if modalities else ()
    return items_of(folder / ITEMS, frame, {path.stem: _features(path) for path in found})


def _features(path: Path) -> Features:
    """Read one modality. Raises `DataError` that names the file."""
    tensors, metadata = read_tensors(path)
    if {"features", "present"} - tensors.keys():
        raise DataError(f"{path} lacks the tensors 'features' and 'present'")
    standard = None
    if {"mean", "scale"} <= tensors.keys():
        standard = Standard(tensors["mean"].float().numpy(), float(tensors["scale"]))
    try:
        values, present = tensors["features"].numpy(), tensors["present"].numpy()
        return Features(values, present, metadata.get("encoder", "unknown"), standard)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
