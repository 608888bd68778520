"""Encodes a dataset's own pictures and texts, batch by batch: after a kill it goes on where it was.

A batch's vectors lie in features/.partial-MODEL/CONTENT.safetensors, named by hashes: a picture that is put right in between
costs its own batch only. The old features stay until every batch of every modality is there.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.common.data.catalogue import FEATURES, Catalogue, Features, load_catalogue, sentences
from tessera.common.data.folder_kinds import DATASET
from tessera.common.data.pictures import pictures_in
from tessera.common.datasets.dataset_folder import write_description
from tessera.common.encoders.base import Encoder, Vectors, encode_readable
from tessera.common.errors import DataError
from tessera.common.registry.converters import holds_users
from tessera.common.utils.atomic_files import digest, file_digest, read_json, read_tensors, write_tensors

BATCH = 64
"""Pictures or texts that are encoded, and lost when the process is killed, at once."""
PARTIAL = ".partial-"
ENCODED = "encoded"
"""Where dataset.json keeps what the features were made from, by modality."""

Begin = Callable[[str, int, int], Callable[[int], None]]
"""Called with a modality, how much there is to encode and how much is done; what it returns is called with each step."""


@dataclass(frozen=True)
class Job:
    """One modality to encode: for each item a picture's path or a text, None where it has none."""

    modality: str
    items: tuple[str, ...]
    contents: tuple[Path | str | None, ...]
    encode: Callable[[Sequence[Any]], Vectors]
    encoder: str
    weights: str | None

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The items that have something to encode."""
        return tuple(row for row, content in enumerate(self.contents) if content is not None)

    @cached_property
    def hashes(self) -> tuple[str | None, ...]:
        """SHA-256 of each item's content."""
        return tuple(_content_hash(content) for content in self.contents)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What decides the features: another encoder, other weights or other contents give others."""
        contents = _hash(self.items, self.hashes)
        return {"encoder": self.encoder, "weights_sha256": self.weights, "content_sha256": contents}

    @cached_property
    def parts(self) -> list[tuple[Path, tuple[int, ...]]]:
        """Files of the batches, below the dataset's features, and the items of each."""
        folder = Path(f"{PARTIAL}{_hash(self.modality, self.encoder, self.weights)[:16]}")
        batches = [self.rows[start : start + BATCH] for start in range(0, len(self.rows), BATCH)]
        hashes = [_hash(rows, [self.hashes[row] for row in rows])[:32] for rows in batches]
        return [(folder / f"{name}.safetensors", rows) for name, rows in zip(hashes, batches, strict=True)]


def encode_dataset(
    folder: Path, encoder: Encoder, begin: Begin, pictures: Path | None = None, skip_unreadable: bool = False
) -> tuple[str, ...]:
    """Replace the features in `folder` by what `encoder` makes of its pictures and texts; return the modalities made anew.

    `pictures` is a folder of pictures named after the items' ids, for a dataset without pictures of its own. The same
    contents, encoder and weights are not encoded again. Raises `DataError` that names the item and file of a picture
    that cannot be read, unless those count as missing.
    """
    about = read_json(folder / DATASET)
    if not holds_users(about.get("kind", "")):
        raise DataError(
            f"the codebook of the questions in {folder} was made from its features: convert them again, with --encode"
        )
    catalogue = load_catalogue(folder)
    jobs = _jobs(folder, catalogue, encoder, pictures)
    fresh = [job for job in jobs if not _is_encoded(job, about, catalogue)]
    features = {job.modality: encoded(job, folder / FEATURES, begin, skip_unreadable) for job in fresh}
    features = {name: _as_before(one, catalogue.features.get(name)) for name, one in features.items()}
    if fresh:
        replace(catalogue, features={**catalogue.features, **features}).save(folder)
        kept = {name: value for name, value in about.items() if name not in ("format", "counts", "features")}
        made = {**about.get(ENCODED, {}), **{job.modality: job.about for job in fresh}}
        write_description(folder, kept | {ENCODED: made})
    for parts in (folder / FEATURES).glob(f"{PARTIAL}*"):
        shutil.rmtree(parts)
    return tuple(features)


def _jobs(folder: Path, catalogue: Catalogue, encoder: Encoder, pictures: Path | None) -> list[Job]:
    """What there is to encode. Raises `DataError` when there is nothing."""
    paths = picture_paths(folder, catalogue, pictures)
    texts = tuple(text or None for text in sentences(catalogue.titles, catalogue.texts))
    weights = encoder.weights
    jobs = (
        Job("image", catalogue.items, paths, encoder.encode_images, encoder.image_name, weights.get("image")),
        Job("text", catalogue.items, texts, encoder.encode_texts, encoder.text_name, weights.get("text")),
    )
    if not any(job.rows for job in jobs if job.encoder):  # one that has no name for a modality does not encode it
        raise DataError(
            f"the items of {folder} have neither pictures nor texts: pass --images with a folder of pictures"
        )
    return [job for job in jobs if job.rows and job.encoder]


def picture_paths(folder: Path, catalogue: Catalogue, pictures: Path | None) -> tuple[Path | None, ...]:
    """Each item's picture: the dataset's own, or those in a folder, such as ITEM.jpg. Raises `DataError` for none there."""
    if pictures is None:
        return tuple(folder / image if image else None for image in catalogue.images)
    found, _ = pictures_in(pictures)
    paths = tuple(pictures / found[item] if item in found else None for item in catalogue.items)
    if not any(paths):
        example = f"{catalogue.items[0]}.jpg" if catalogue.items else "ITEM.jpg"
        raise DataError(f"no picture in {pictures} is named after an item, such as {example}")
    return paths


def _hash(*values: Any) -> str:
    return digest(json.dumps(values).encode())


def _content_hash(content: Path | str | None) -> str | None:
    """SHA-256 of a picture's file or of a text; empty for a file that cannot be opened, which is an error later."""
    if content is None:
        return None
    try:
        return file_digest(content) if isinstance(content, Path) else digest(content.encode())
    except OSError:
        return ""


def _is_encoded(job: Job, about: Mapping[str, Any], catalogue: Catalogue) -> bool:
    """Whether the features are there already, made from the same, and as they were made."""
    features = catalogue.features.get(job.modality)
    described = about.get("features", {}).get(job.modality, {}).get("sha256")
    return (
        about.get(ENCODED, {}).get(job.modality) == job.about and features is not None and features.sha256 == described
    )


def encoded(job: Job, folder: Path, begin: Begin, skip_unreadable: bool) -> Features:
    """Encode the batches that are not there yet, and put all together."""
    missing = [(path, rows) for path, rows in job.parts if not (folder / path).is_file()]
    step = begin(job.modality, len(job.rows), len(job.rows) - sum(len(rows) for _, rows in missing))
    for path, rows in missing:
        read, found = encode_readable(job.encode, job.items, job.contents, rows, skip_unreadable)
        write_tensors(folder / path, {"rows": torch.tensor(read), "features": torch.from_numpy(found)})
        step(len(rows))
    parts = [read_tensors(folder / path)[0] for path, _ in job.parts]
    filled = [(part["rows"].numpy(), part["features"].numpy()) for part in parts if len(part["rows"])]
    if not filled:
        raise DataError(f"none of the {len(job.rows)} pictures can be read")
    values = np.zeros((len(job.items), filled[0][1].shape[1]), dtype=np.float32)
    present = np.zeros(len(job.items), dtype=bool)
    for encoded, vectors in filled:
        values[encoded], present[encoded] = vectors, True
    return Features(values, present, job.encoder)


def _as_before(features: Features, before: Features | None) -> Features:
    """Features with the standard of those that the same encoder made before, where the catalogue has grown since."""
    same = before is not None and before.encoder == features.encoder
    return replace(features, standard=before.standard) if before and same else features
