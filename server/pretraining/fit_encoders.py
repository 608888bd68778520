"""Fits a dataset's towers for raw pictures and texts, which `tessera data encode` then uses.

They learn to map each item to its place in the shared space of the dataset's features. A fit from the same content and
settings is not repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.common.data.catalogue import Catalogue, load_catalogue, sentences
from tessera.common.datasets.encode import picture_paths
from tessera.common.encoders.towers import encoder_path, load_encoder, pixels, save_encoder
from tessera.common.errors import DataError
from tessera.common.towers.io import read_about
from tessera.common.towers.shared_space import shared_space
from tessera.common.towers.transformer import SIDE, SIZES, Tower, words
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import digest
from tessera.common.utils.torch_device import one_thread
from tessera.server.pretraining import encoder_training
from tessera.server.pretraining.aligned_init import public_rows, reader_inputs
from tessera.server.pretraining.encoder_training import EncoderSamples
from tessera.server.pretraining.fit_readers import (
    LARGEST_CLASS,
    Begin,
    content_hash,
    held_out,
    is_fitted,
    refuse_unknown,
)

HELD_OUT = 0.1
"""Share of the items, by hash, that a tower is tested on where a dataset does not say which."""
CONSTANTS = ("BATCH", "RATE", "DECAY", "TEMPERATURE", "REGRESSION_WEIGHT", "WORD_DROPOUT", "SHIFT")

Fits = dict[tuple[str, str], dict[str, Any]]
"""What is recorded of each fit, by class and kind."""


@dataclass(frozen=True)
class EncoderCorpus:
    """What towers of one kind are trained and tested on, and a hash of all that their fits depend on."""

    kind: str
    seen: EncoderSamples
    new: EncoderSamples
    content: str


@one_thread()
def fit_encoders(
    dataset: Path, classes: Sequence[str], kinds: Sequence[str], steps: int, images: Path | None, begin: Begin
) -> Fits:
    """Fit the towers of `classes` for the `kinds` "image" and "text".

    Pictures are the dataset's own, or those in the folder `images`. Smaller towers are derived from base's where that is
    fitted too, or lies there. A fit from the same content and settings is not repeated. Raises `ConfigError` for an unknown
    class, `DataError` where there is too little to learn from, both before the first fit.
    """
    refuse_unknown("device class", classes, SIZES)
    catalogue = load_catalogue(dataset)
    inputs = reader_inputs(catalogue)
    learnt, kept = _parted(catalogue, public_rows(dataset, catalogue))
    space = shared_space(inputs.image, inputs.text, learnt)
    corpora = []
    for kind in kinds:
        if catalogue.features[kind].encoder.startswith("tower:"):
            raise DataError(f"the {kind} features of {dataset} were made by such a tower: convert the dataset again")
        raw, there = _pictures(dataset, catalogue, images, begin) if kind == "image" else _texts(catalogue)
        parts = [rows[there[rows]] for rows in (learnt, kept)]
        if len(parts[0]) < encoder_training.BATCH or len(parts[1]) < 2:
            raise DataError(
                f"{len(parts[0])} items of {dataset} can teach a tower for {kind}, and {len(parts[1])} others test it: "
                f"at least {encoder_training.BATCH} and 2 are needed"
            )
        constants = {name: getattr(encoder_training, name) for name in CONSTANTS}
        content = content_hash(catalogue, learnt, steps, constants, kind, digest(raw.numpy().tobytes()))
        seen, new = (EncoderSamples(raw[rows], getattr(space, kind)[rows]) for rows in parts)
        corpora.append(EncoderCorpus(kind, seen, new, content))
    fits: Fits = {}
    for corpus in corpora:
        fits |= _fit(corpus, dataset / "towers", classes, steps, begin)
    return fits


def _fit(corpus: EncoderCorpus, towers: Path, classes: Sequence[str], steps: int, begin: Begin) -> Fits:
    """Fit the towers of one kind, unless they lie there."""
    fits: Fits = {}
    kind, source = corpus.kind, ""
    teacher: Tower | None = None
    for name in (LARGEST_CLASS, *(name for name in SIZES if name != LARGEST_CLASS)):
        path, key = encoder_path(towers, name, kind), digest(f"{corpus.content} {SIZES[name]} {source}".encode())
        if name in classes and not is_fitted(path, key, "tower"):
            tower = encoder_training.fit(kind, SIZES[name], corpus.seen, teacher, steps, begin(f"{name} {kind}", steps))
            save_encoder(
                tower, path, {"class": name, "key": key, **encoder_training.retrieval_metrics(tower, corpus.new)}
            )
        if name == LARGEST_CLASS and is_fitted(path, key, "tower"):
            teacher, source = load_encoder(path, kind), key
        if name in classes:
            fits[name, kind] = read_about(path, "tower")
    return fits


def _pictures(dataset: Path, catalogue: Catalogue, images: Path | None, begin: Begin) -> tuple[Tensor, Tensor]:
    """Every item's picture as bytes, [n_items, 3, SIDE, SIDE], and which items have one, [n_items]."""
    paths = picture_paths(dataset, catalogue, images)
    if not any(paths):
        raise DataError(
            f"the items of {dataset} have no pictures: convert it with --images, or pass --images with a folder of them"
        )
    step = begin("reading pictures", len(paths))
    raw = torch.zeros(len(paths), 3, SIDE, SIDE, dtype=torch.uint8)
    for row, path in enumerate(paths):
        if path is not None:
            raw[row] = (pixels(path) * 255).round().to(torch.uint8)
        step()
    return raw, torch.tensor([path is not None for path in paths])


def _texts(catalogue: Catalogue) -> tuple[Tensor, Tensor]:
    """The words of every item's title and text, [n_items, LENGTH], and which items have any, [n_items]."""
    raw = words(sentences(catalogue.titles, catalogue.texts))
    return raw, (raw != 0).any(1)


def _parted(catalogue: Catalogue, public: Tensor) -> tuple[Tensor, Tensor]:
    """The items that towers learn from, and those they are measured by and never see, [n] each."""
    kept = held_out(catalogue, public)
    if not torch.equal(kept, public):
        return public, kept
    counters = torch.tensor(
        [counter_rng.key("item", catalogue.items[row]) for row in public.tolist()], dtype=torch.int64
    )
    new = counter_rng.uniform(counter_rng.key("sight", "held out"), counters) < HELD_OUT
    return public[~new], public[new]
