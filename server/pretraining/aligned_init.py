"""Makes the aligned start of a federation of different towers: A and B of every place, fitted on public pretext questions.

Each reader answers the same questions; `tessera.server.pretraining.alignment` aligns what corresponding layers received and
output. The same files give the same start.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue, image_and_text, load_catalogue
from tessera.common.data.questions import NOTHING, PICTURE, TEXT
from tessera.common.registry.methods import AlignmentSettings, PQSettings
from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.aligned_init import STACKS, STANDARD
from tessera.common.towers.io import load_reader, tower_path
from tessera.common.towers.projections import Projections
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import read_tensors
from tessera.common.utils.torch_device import one_thread
from tessera.server.pretraining.activations import activations
from tessera.server.pretraining.alignment import ALIGNMENTS, paper
from tessera.server.pretraining.pretext_tasks import Pretext
from tessera.server.pretraining.reader_training import QuestionBatch, ReaderInputs
from tessera.server.pretraining.text_alignment import words_start

ALIGNMENT_WORD_DROPOUT = 0.4
"""Share of the words of the pretext questions that towers are aligned on which is replaced: what devices will be asked is in
words that no pretext has."""
SHOWN = {"pictures": PICTURE, "texts": TEXT}
"""Domains of alignment questions that show one kind alone."""


def reader_inputs(catalogue: Catalogue) -> ReaderInputs:
    """The standardised features that readers take. Raises `DataError` when a modality is missing."""
    return ReaderInputs(*image_and_text(catalogue))


def public_rows(dataset: Path, catalogue: Catalogue) -> Tensor:
    """The items [n] that may be asked about in public: those a dataset of questions lists, or all with both modalities."""
    path = dataset / "questions" / "public.safetensors"
    if path.is_file():
        return read_tensors(path)[0]["rows"]
    both = catalogue.features["image"].present & catalogue.features["text"].present
    return torch.from_numpy(np.flatnonzero(both))


def start_of(dataset: Path, classes: Sequence[str], settings: Settings) -> dict[str, dict[str, Projections]]:
    """The frozen matrices of every place by device class: of readers by `shared_start`, of models by `words_start`."""
    mosaic, pq = settings.mosaic, settings.mosaic.pq or STANDARD
    if settings.in_words:
        return words_start(dataset, classes, mosaic.rank, pq)
    return shared_start(dataset, classes, mosaic.rank, pq, mosaic.alignment)


@one_thread()
def shared_start(
    dataset: Path,
    classes: Sequence[str],
    rank: int,
    pq: PQSettings,
    seen: AlignmentSettings = AlignmentSettings(),
) -> dict[str, dict[str, Projections]]:
    """The frozen matrices of every place by device class, from the fitted readers of `dataset`.

    `pq` says how many blocks there are, whether queries and keys are places, and which alignment it is. The same files give
    the same start. Raises `DataError` when a reader was not fitted, `ConfigError` when `rank` or the blocks do not fit.
    """
    catalogue = load_catalogue(dataset)
    inputs = reader_inputs(catalogue)
    pretext = Pretext.of(inputs.image, inputs.text, public_rows(dataset, catalogue))
    batch = QuestionBatch.of(pretext, seen.questions, counter_rng.key("alignment"), ALIGNMENT_WORD_DROPOUT)
    batch = _showing(batch, seen.domain)
    recorded = []
    for name in classes:
        reader = load_reader(tower_path(dataset, name))
        recorded.append(
            activations(reader, placement(reader, STACKS, pq.blocks, pq.queries_and_keys)[1], inputs, batch)
        )
    start: dict[str, dict[str, Projections]] = {name: {} for name in classes}
    for place in recorded[0]:
        towers, salt = [tower[place] for tower in recorded], counter_rng.key("start", place)
        align = (
            partial(paper, orthogonality=seen.orthogonality) if pq.alignment == "paper" else ALIGNMENTS[pq.alignment]
        )
        aligned = align(towers, rank, salt)
        for name, own in zip(classes, aligned, strict=True):
            start[name][place] = own
    return start


def _showing(batch: QuestionBatch, domain: str) -> QuestionBatch:
    """The same questions with all that they show of one kind, where the domain is of one."""
    if domain not in SHOWN:
        return batch
    pieces = batch.questions.pieces.clone()
    pieces[..., 0] = torch.where(pieces[..., 0] == NOTHING, NOTHING, SHOWN[domain])
    return replace(batch, questions=replace(batch.questions, pieces=pieces))
