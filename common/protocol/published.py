"""What a server publishes of the best model of a run, for whoever wants recommendations: devices need not take part for it.

A manifest says which files there are, each called by the SHA-256 of its content. They tell of items alone:

    tensors      safetensors: the views and the shared tensors of the best round, written as devices get them in a run
    items        parquet: the catalogue's ids, titles, texts and image paths (`tessera.common.data.catalogue`)
    pictures     JSON, where the operator publishes them: which small picture each item has (`PictureList`); they are files too
    popularity   safetensors: "popularity" [n_items], see `popularity_levels`; where item counts are known and may be told
"""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import NAME
from tessera.common.errors import DataError

MANIFEST, BLOBS = "manifest.json", "blobs"
"""Where the manifest lies below the server's address, and the files by their SHA-256."""
SMALL_BYTES = 12_000
"""Bytes of a small picture at most."""
LARGEST_MANIFEST, LARGEST_FILE = 1 << 20, 1 << 32
"""Bytes that a device takes at most."""
POPULARITY = "popularity"
FEWEST = 5
"""People who must have an item before anything is told of its popularity."""
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
RunName = Annotated[str, Field(pattern=f"^(?:{NAME})$")]
Round = Annotated[int, Field(ge=0)]
FileName = Literal["tensors", "items", "popularity"]


class PublishedFile(BaseModel):
    """A file: the SHA-256 of its content, and how many bytes it has."""

    model_config = ConfigDict(frozen=True)

    sha256: Hash
    size: Annotated[int, Field(ge=0, le=LARGEST_FILE)]


class PictureList(BaseModel):
    """Small pictures of items: of each row that has one, the hash of its content and its bytes. Several items may share one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rows: dict[Annotated[int, Field(ge=0)], tuple[Hash, Annotated[int, Field(ge=1, le=SMALL_BYTES)]]]

    @classmethod
    def read(cls, content: bytes, source: str) -> "PictureList":
        """Read a list, which may be anybody's. Raises `DataError` that names `source`."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise DataError(f"{source} is no list of pictures ({error.errors()[0]['msg']})") from None


class PublishedCatalogue(BaseModel):
    """Which catalogue it is: the hash by which devices and server agree on items, and how many there are."""

    model_config = ConfigDict(frozen=True)

    sha256: Hash
    n_items: Annotated[int, Field(ge=1)]


class Continued(BaseModel):
    """A run that another one goes on from, and the last round of it that counts."""

    model_config = ConfigDict(frozen=True)

    run: RunName
    round: Round


class Published(BaseModel):
    """The manifest: which round of which run it is, on which catalogue, and the files. Unknown keys are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["tessera-model"] = "tessera-model"
    version: Literal[1] = 1
    run: RunName
    round: Round
    continues: tuple[Continued, ...] = ()
    """The runs that it goes on from, the nearest first: who trained in one of those has a private state for this model."""
    time: str
    """When it was published, ISO 8601."""
    views: tuple[str, ...]
    settings: DeviceSettings
    catalogue: PublishedCatalogue
    tensors: Hash
    """Content hash of the tensors, by which devices call them."""
    files: dict[FileName, PublishedFile]
    pictures: PublishedFile | None = None
    """Which small pictures there are, for devices that want them."""

    @classmethod
    def read(cls, content: bytes, source: str) -> "Published":
        """Read a manifest, which may be anybody's. Raises `DataError` that names `source`."""
        try:
            found = cls.model_validate_json(content, context={"lenient": True})
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise DataError(f"{source} is no model of ours ({place}: {error.errors()[0]['msg']})") from None
        if missing := {"tensors", "items"} - found.files.keys():
            raise DataError(f"{source} is no model of ours: it has no {min(missing)}")
        return found


def popularity_levels(counts: Tensor) -> Tensor:
    """How popular items are, [n_items] uint8, from how many people have each: half the steps of a doubling.

    0 is for fewer than `FEWEST` people, n is for `FEWEST` * sqrt(2)^(n - 1) and more: one person more or less mostly changes
    nothing that is told.
    """
    steps = 1 + (2 * torch.log2(counts.double().clamp(min=FEWEST) / FEWEST)).floor()
    return torch.where(counts >= FEWEST, steps, torch.zeros_like(steps)).to(torch.uint8)
