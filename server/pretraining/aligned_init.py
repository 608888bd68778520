"""Makes the aligned start of a federation of different towers: A and B of every place, fitted on public pretext questions.

Each reader answers the same questions; `tessera.server.pretraining.alignment` aligns what corresponding layers received and
output. The same files give the same start.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tessera.common.data.catalogue import Catalogue, image_and_text, load_catalogue
from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.aligned_init import STACKS
from tessera.common.towers.io import load_reader, tower_path
from tessera.common.towers.projections import Projections
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import read_tensors
from tessera.common.utils.torch_device import one_thread
from tessera.server.pretraining.activations import activations
from tessera.server.pretraining.alignment import ALIGNMENTS
from tessera.server.pretraining.pretext_tasks import Pretext
from tessera.server.pretraining.reader_training import QuestionBatch, ReaderInputs

N_ALIGNMENT_QUESTIONS, ALIGNMENT_WORD_DROPOUT = 600, 0.4
"""Pretext questions that towers are aligned on, some 2,000 positions, and the share of their words that are replaced: what
devices will be asked is in words that no pretext has."""


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


@one_thread()
def shared_start(
    dataset: Path, classes: Sequence[str], rank: int, n_blocks: int, alignment: str
) -> dict[str, dict[str, Projections]]:
    """The frozen matrices of every place by device class, from the fitted readers of `dataset`.

    The same files give the same start. Raises `DataError` when a reader was not fitted, `ConfigError` when `rank` or
    `n_blocks` do not fit.
    """
    catalogue = load_catalogue(dataset)
    inputs = reader_inputs(catalogue)
    pretext = Pretext.of(inputs.image, inputs.text, public_rows(dataset, catalogue))
    batch = QuestionBatch.of(pretext, N_ALIGNMENT_QUESTIONS, counter_rng.key("alignment"), ALIGNMENT_WORD_DROPOUT)
    recorded = []
    for name in classes:
        reader = load_reader(tower_path(dataset, name))
        recorded.append(activations(reader, placement(reader, STACKS, n_blocks)[1], inputs, batch))
    start: dict[str, dict[str, Projections]] = {name: {} for name in classes}
    for place in recorded[0]:
        aligned = ALIGNMENTS[alignment]([tower[place] for tower in recorded], rank, counter_rng.key("start", place))
        for name, own in zip(classes, aligned, strict=True):
            start[name][place] = own
    return start
