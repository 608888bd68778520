"""Makes the next version of a dataset's catalogue: items are added, changed or retired, and no row ever moves.

dataset.json tells the versions under "catalogue": the number and hash of this one, and the history of all, each with its date,
its parent's hash, and what changed. A version takes its place as a whole, whenever the process is killed. See
`tessera.common.data.catalogue` for what a version may change.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.common.data.catalogue import ITEMS, Catalogue, Features, items_frame, load_catalogue
from tessera.common.data.folder_kinds import DATASET
from tessera.common.datasets.dataset_folder import summary
from tessera.common.datasets.new_content import Made, NewContent
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import digest, read_json, write_json
from tessera.common.utils.changed_together import changed_together

CATALOGUE = "catalogue"
"""Where dataset.json tells the versions."""


@dataclass(frozen=True)
class Version:
    """What a change made: the version's number and hash, the ids it concerns, and what became of each modality's features."""

    number: int
    sha256: str
    items: int
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    features: Mapping[str, Made] = field(default_factory=dict)


def add_items(dataset: Path, content: NewContent) -> Version:
    """Append new items. Raises `DataError` that names what is wrong with them; then the dataset is as it was."""
    with _next_version(dataset) as change:
        catalogue, ids = change.catalogue, tuple(content.items["item"].to_list())
        if known := sorted(set(ids) & set(catalogue.items)):
            raise DataError(
                f"{content.path}: item {known[0]!r} is in {dataset} already: `change` gives it another content"
            )
        first = len(catalogue)
        columns = {name: tuple(content.items[name].to_list()) for name in ("title", "text", "image")}
        features, made = content.features(catalogue, dataset, range(len(ids)), columns)
        rows = {row: first + row for row in range(len(ids))}
        images = change.pictures(content.path.parent, {rows[row]: path for row, path in enumerate(columns["image"])})
        change.after = Catalogue(
            catalogue.items + ids,
            catalogue.titles + columns["title"],
            catalogue.texts + columns["text"],
            catalogue.images + tuple(images.get(rows[row], "") for row in range(len(ids))),
            {name: _appended(before, features[name]) for name, before in catalogue.features.items()},
            _marks(catalogue, len(ids)),
        )
        change.tell({"added": ids}, made)
    return change.version


def change_items(dataset: Path, content: NewContent) -> Version:
    """Give items another title, text or picture, and the features that follow; an empty cell leaves what was there.

    Raises `DataError` for an item that there is not, and where nothing would change; then the dataset is as it was.
    """
    with _next_version(dataset) as change:
        catalogue, ids = change.catalogue, content.items["item"].to_list()
        row_of = {item: row for row, item in enumerate(catalogue.items)}
        if strange := [item for item in ids if item not in row_of]:
            raise DataError(f"{content.path}: item {strange[0]!r} is not in {dataset}: `add` takes new ones in")
        rows, given = (
            [row_of[item] for item in ids],
            {name: content.items[name].to_list() for name in ("title", "text")},
        )
        titles, texts = list(catalogue.titles), list(catalogue.texts)
        for at, row in enumerate(rows):
            titles[row], texts[row] = given["title"][at] or titles[row], given["text"][at] or texts[row]
        worded = [
            at
            for at, row in enumerate(rows)
            if (titles[row], texts[row]) != (catalogue.titles[row], catalogue.texts[row])
        ]
        pictured = [at for at, path in enumerate(content.items["image"].to_list()) if path]
        touched = sorted({*worded, *pictured, *(at for at in range(len(ids)) if content.gives(ids[at]))})
        if not touched:
            raise DataError(f"{content.path} changes nothing: give items another title, text or image, or --features")
        columns = {
            "title": tuple(titles[rows[at]] if at in worded else "" for at in touched),
            "text": tuple(texts[rows[at]] if at in worded else "" for at in touched),
            "image": tuple(content.items["image"][at] or "" for at in touched),
        }
        features, made = content.features(catalogue, dataset, touched, columns)
        moved = np.array([rows[at] for at in touched])
        images = list(catalogue.images)
        for row, path in change.pictures(
            content.path.parent, dict(zip(moved.tolist(), columns["image"], strict=True))
        ).items():
            images[row] = path
        change.after = replace(
            catalogue,
            titles=tuple(titles),
            texts=tuple(texts),
            images=tuple(images),
            features={name: _replaced(before, features[name], moved) for name, before in catalogue.features.items()},
        )
        change.tell({"changed": tuple(ids[at] for at in touched)}, made)
    return change.version


def retire_items(dataset: Path, rows: Sequence[int], back: bool = False) -> Version:
    """Mark items as retired: they are in no training and recommended to nobody from then on; `back` takes that back.

    Raises `DataError` where an item is so already, or none would be left; then the dataset is as it was.
    """
    with _next_version(dataset) as change:
        catalogue = change.catalogue
        marks = np.zeros(len(catalogue), dtype=bool) if catalogue.retired is None else catalogue.retired.copy()
        if same := [row for row in rows if marks[row] != back]:
            said = "is not retired" if back else "is retired already"
            raise DataError(f"item {catalogue.items[same[0]]!r} of {dataset} {said}")
        marks[list(rows)] = not back
        if marks.all():
            raise DataError(f"no item of {dataset} would be left: keep one at least")
        change.after = replace(catalogue, retired=marks)
        ids = tuple(catalogue.items[row] for row in dict.fromkeys(rows))
        change.tell({"back" if back else "retired": ids})
    return change.version


@dataclass(frozen=True)
class Difference:
    """What a later version of a catalogue has otherwise, by item id. `extends` says whether it is a later version at all."""

    extends: bool
    added: tuple[str, ...]
    changed: tuple[str, ...]
    retired: tuple[str, ...]
    back: tuple[str, ...]
    missing: tuple[str, ...]
    """Items that are not there any more: never, in a later version."""


def difference(before: Catalogue, after: Catalogue) -> Difference:
    """Compare two catalogues item by item: words, picture's place, features as far as both have them, and marks."""
    there, then = ({item: row for row, item in enumerate(one.items)} for one in (before, after))
    both = [item for item in before.items if item in then]
    old, new = np.array([there[item] for item in both], dtype=int), np.array([then[item] for item in both], dtype=int)
    same = np.ones(len(both), dtype=bool)
    for column in ("titles", "texts", "images"):
        a, b = getattr(before, column), getattr(after, column)
        same &= np.array([a[i] == b[j] for i, j in zip(old, new, strict=True)], dtype=bool)
    for name in before.features.keys() & after.features.keys():
        same &= _alike(before.features[name].take(old), after.features[name].take(new))
    was, now = (np.zeros(len(one), dtype=bool) if one.retired is None else one.retired for one in (before, after))

    def ids(chosen: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(both[at] for at in np.flatnonzero(chosen))

    return Difference(
        extends=after.extends(before),
        added=tuple(item for item in after.items if item not in there),
        changed=ids(~same),
        retired=ids(~was[old] & now[new]),
        back=ids(was[old] & ~now[new]),
        missing=tuple(item for item in before.items if item not in then),
    )


class _Change:
    """A version in the making: the catalogue as it was, and as it will be."""

    def __init__(self, dataset: Path, folder: Path) -> None:
        self.dataset, self.folder = dataset, folder
        self.about = read_json(dataset / DATASET)
        self.catalogue = load_catalogue(dataset)
        self.after = self.catalogue
        self.history: list[dict[str, Any]] = self.about.get(CATALOGUE, {}).get("history") or [
            _first(dataset, self.catalogue)
        ]
        self.number = int(self.history[-1]["version"]) + 1
        self.version = Version(0, "", 0)
        self.replaced: list[str] = []

    def pictures(self, source: Path, paths: Mapping[int, str]) -> dict[int, str]:
        """Copy the pictures of rows, where the dataset keeps its items' pictures; return their paths in it."""
        copies: dict[int, str] = {}
        if not any(self.catalogue.images):
            return copies
        for row, picture in paths.items():
            if not picture:
                continue
            copies[row] = f"images/{row:06d}-{self.number}{PurePosixPath(picture).suffix.lower()}"
            target = self.folder / copies[row]
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(source / picture, target)
            except OSError as error:
                raise DataError(f"picture {source / picture} cannot be copied: {error.strerror}") from None
            if row < len(self.catalogue) and self.catalogue.images[row]:
                self.replaced.append(self.catalogue.images[row])
        return copies

    def tell(self, concerned: Mapping[str, tuple[str, ...]], features: Mapping[str, Made] | None = None) -> None:
        """Write the new version's files, and what dataset.json says of it."""
        after = self.after
        self.version = Version(self.number, after.sha256, len(after), features=features or {}, **concerned)
        entry = {**_entry(self.number, datetime.now(UTC), after), "parent": self.catalogue.sha256}
        self.history.append(entry | {name: list(ids) for name, ids in concerned.items()})
        after_features = {name: summary(one) for name, one in after.features.items()}
        told = {CATALOGUE: {"version": self.number, "sha256": after.sha256, "history": self.history}}
        counts = self.about["counts"] | {"items": len(after)}
        (replace(after, features={}) if not features else after).save(self.folder)
        write_json(self.folder / DATASET, self.about | {"counts": counts, "features": after_features} | told)


@contextmanager
def _next_version(dataset: Path) -> Iterator[_Change]:
    """Make a version, which takes its place at the end. Raises `DataError` where `dataset` is none that recommends items."""
    if not (dataset / DATASET).is_file():
        raise DataError(
            f"{dataset} is no dataset ({DATASET} is missing): convert the data first (tessera data convert)"
        )
    with changed_together(dataset) as folder:
        change = _Change(dataset, folder)
        yield change
    for picture in change.replaced:
        (dataset / picture).unlink(missing_ok=True)


def _first(dataset: Path, catalogue: Catalogue) -> dict[str, Any]:
    """The entry of a catalogue that was not changed so far."""
    date = datetime.fromtimestamp((dataset / ITEMS).stat().st_mtime, UTC)
    return {**_entry(1, date, catalogue), "parent": None}


def _entry(number: int, date: datetime, catalogue: Catalogue) -> dict[str, Any]:
    """What the history says of any version; `content` changes with words, pictures and features too."""
    content = items_frame(catalogue).write_csv() + "".join(one.sha256 for one in catalogue.features.values())
    return {
        "version": number,
        "date": date.isoformat(timespec="seconds"),
        "items": len(catalogue),
        "retired_items": 0 if catalogue.retired is None else int(catalogue.retired.sum()),
        "sha256": catalogue.sha256,
        "content": digest(content.encode()),
    }


def _marks(catalogue: Catalogue, more: int) -> NDArray[np.bool_] | None:
    return None if catalogue.retired is None else np.concatenate([catalogue.retired, np.zeros(more, dtype=bool)])


def _appended(before: Features, new: Features) -> Features:
    values = np.concatenate([before.values, new.values.astype(before.values.dtype)])
    present = np.concatenate([before.present, new.present])
    return Features(values, present, before.encoder, before.standard or before.own_standard())


def _replaced(before: Features, new: Features, rows: NDArray[np.integer]) -> Features:
    """The features with those of `rows` in place; a row that is not present in `new` stays as it was."""
    values, present = before.values.copy(), before.present.copy()
    values[rows[new.present]], present[rows[new.present]] = new.values[new.present].astype(values.dtype), True
    return Features(values, present, before.encoder, before.standard or before.own_standard())


def _alike(a: Features, b: Features) -> NDArray[np.bool_]:
    """Which rows are the same in both, [n_items]."""
    if a.values.shape != b.values.shape:
        return np.zeros(len(a.values), dtype=bool)
    rows = (a.values == b.values).all(axis=1) | (~a.present & ~b.present)
    same: NDArray[np.bool_] = rows & (a.present == b.present)
    return same
