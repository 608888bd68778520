"""What changes between two versions of a catalogue, as it travels to a device: new items, changed ones, and which are retired.

The server keeps no past versions. A device says which one it holds (`Held`): how many items, a hash of their ids, and a short
hash of what is shown of each 256 of them. Rows never move, so this is enough to tell whether the server's catalogue extends
that one, which rows are new, and where something that is shown has changed.

Law: where `newer` extends `older`, `changed(older, Delta.between(newer, Held.of(older)))` shows what the newer does.
"""

import json
from base64 import b64encode
from collections.abc import Callable, Iterable
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tessera.common.data.catalogue import Catalogue, CatalogueVersion
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import digest

CHUNK = 256
"""Items whose shown text is compared by one hash."""
LARGEST = 256 << 20
"""Bytes of a delta that a device reads at most: the texts of some hundred thousand items."""
LARGEST_PICTURE, MOST_PICTURES = 16_000, 32 << 20
"""Characters of a small picture, and of all of a delta, at most; a device pulls the others."""
Pictures = Callable[[Iterable[int]], Iterable[tuple[int, bytes]]]
"""From rows to small pictures of those that have one."""
MOST_ITEMS = 1 << 22
"""Items that a device lets a server's changes lead to at most."""
Row = Annotated[int, Field(ge=0, lt=MOST_ITEMS, strict=True)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Held(BaseModel):
    """Which catalogue a device holds: its version, and a short hash of what is shown of each `CHUNK` items."""

    model_config = ConfigDict(frozen=True)

    version: CatalogueVersion
    shown: tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...]
    pictures: bool = False
    """Whether the device wants small pictures of what is new to it."""

    @classmethod
    def of(cls, catalogue: Catalogue) -> "Held":
        """What a device with this catalogue says."""
        starts = range(0, len(catalogue), CHUNK)
        return cls(version=catalogue.version, shown=tuple(_shown(catalogue, start, len(catalogue)) for start in starts))

    @classmethod
    def read(cls, text: str) -> "Held":
        """Read what a device said, whoever it is. Raises `DataError`."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            raise DataError("does not say properly which catalogue it holds") from None


class Delta(BaseModel):
    """From a catalogue of `n_before` items to the one with hash `sha256`: rows that are new or shown otherwise, each (row, id,
    title, text, image), the new ones in their order; and all rows that are retired."""

    model_config = ConfigDict(frozen=True)

    sha256: Hash
    n_before: Row
    rows: tuple[tuple[Row, str, str, str, str], ...]
    retired: tuple[Row, ...]
    pictures: dict[Row, Annotated[str, Field(max_length=LARGEST_PICTURE)]] = {}
    """Small pictures of some of these rows in base64, for a device that wants them."""

    @classmethod
    def between(cls, newer: Catalogue, held: Held, pictures: Pictures = lambda rows: ()) -> "Delta":
        """What takes a device from what it holds to `newer`. Raises `DataError` where that does not extend it."""
        before = held.version
        if before.n_items > len(newer):
            raise DataError(
                f"holds a catalogue of {before.n_items} items, this run has {len(newer)}: use the newer one"
            )
        if not newer.extends(before):
            raise DataError(
                f"holds {before.n_items} items that are not the first of this run's {len(newer)}: use one dataset"
            )
        starts = range(0, before.n_items, CHUNK)
        said = dict(zip(starts, held.shown, strict=False))
        other = [start for start in starts if said.get(start) != _shown(newer, start, before.n_items)]
        rows = [row for start in other for row in range(start, min(start + CHUNK, before.n_items))]
        rows += range(before.n_items, len(newer))
        shown = tuple((row, newer.items[row], newer.titles[row], newer.texts[row], newer.images[row]) for row in rows)
        retired = () if newer.retired is None else tuple(np.flatnonzero(newer.retired).tolist())
        found, room = dict[int, str](), MOST_PICTURES
        for row, content in pictures(rows) if held.pictures else ():
            found[row] = b64encode(content).decode()
            if (room := room - len(found[row])) < LARGEST_PICTURE:
                break
        return cls(sha256=newer.sha256, n_before=before.n_items, rows=shown, retired=retired, pictures=found)

    def write(self) -> bytes:
        """As it travels."""
        return json.dumps(self.model_dump(), ensure_ascii=False).encode()

    @classmethod
    def read(cls, content: bytes) -> "Delta":
        """Read what may be anybody's. Raises `DataError`."""
        if len(content) > LARGEST:
            raise DataError(f"a change of the catalogue came with {len(content)} bytes, more than {LARGEST}")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise DataError(f"what came as a change of the catalogue is none: {error.errors()[0]['msg']}") from None


def changed(own: Catalogue, delta: Delta) -> Catalogue:
    """The catalogue that `delta` makes of one's own, without features: whose items keep their rows and ids.

    Raises `DataError` for one that is not for this catalogue, moves or renames an item, or does not lead where it says.
    """
    if delta.n_before != len(own):
        raise DataError(f"the change is for a catalogue of {delta.n_before} items, this one has {len(own)}")
    columns = [list(column) for column in (own.items, own.titles, own.texts, own.images)]
    for row, *shown in delta.rows:
        if not shown[0] or "\n" in shown[0] or "\0" in shown[0]:
            raise DataError(f"the change names an item in row {row} by what is no id")
        if row < len(own):
            if shown[0] != own.items[row]:
                raise DataError(
                    f"the change would put {shown[0]!r} in the place of {own.items[row]!r}, and rows never move"
                )
        elif row != len(columns[0]):
            raise DataError(f"the change has an item for row {row}, the next one is {len(columns[0])}")
        for column, value in zip(columns, shown, strict=True):
            column[row : row + 1] = [value]
    retired = np.zeros(len(columns[0]), dtype=bool)
    if any(row >= len(retired) for row in delta.retired):
        raise DataError(f"the change retires row {max(delta.retired)}, there are {len(retired)} items")
    retired[list(delta.retired)] = True
    items, titles, texts, images = map(tuple, columns)
    found = Catalogue(items, titles, texts, images, retired=retired)
    if found.sha256 != delta.sha256:
        raise DataError("the change does not lead to the catalogue that it names")
    return found


def _shown(catalogue: Catalogue, start: int, end: int) -> str:
    """A short hash of what is shown of the items from `start` on, up to a chunk of them and not beyond `end`."""
    rows = slice(start, min(start + CHUNK, end))
    columns = (catalogue.titles, catalogue.texts, catalogue.images)
    return digest(json.dumps([column[rows] for column in columns]).encode())[:16]
