"""Readers that were fitted on pretext questions alone know nothing of a benchmark's answers: they begin at chance."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tessera.client.qa_dataset import QADataset
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.questions import NOTHING, Codebook, Questions, concatenate
from tessera.common.datasets import convert
from tessera.common.towers.transformer import SIZES
from tessera.server.pretraining.aligned_init import public_rows, reader_inputs
from tessera.server.pretraining.pretext_tasks import Pretext
from tessera.server.pretraining.reader_training import fit

REAL = Path(os.environ.get("TESSERA_DATA", "")) / "ml-latest-small"
STEPS = 600


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.skipif(not (REAL / "movies.csv").is_file(), reason="TESSERA_DATA has no ml-latest-small")
@torch.no_grad()
def test_a_fitted_reader_begins_at_chance_in_every_family(tmp_path: Path) -> None:
    convert("questions", REAL, tmp_path / "data")
    catalogue = load_catalogue(tmp_path / "data")
    inputs, rows = reader_inputs(catalogue), public_rows(tmp_path / "data", catalogue)
    with torch.enable_grad():
        reader = fit(SIZES["tiny"], Pretext.of(inputs.image, inputs.text, rows), inputs, None, STEPS, lambda: None)
    asked = tmp_path / "data/questions"
    items, codebook = reader.embed_items(inputs.image, inputs.text), Codebook.load(asked / "codebook.safetensors")
    tests = concatenate([Questions.load(path) for path in sorted(asked.glob("*/test.safetensors"))])

    def above_chance(chosen: Tensor) -> float:
        """Accuracy on the tasks `chosen` [n_tasks] above chance, in standard errors."""
        own = tests.take(chosen[tests.tasks])
        dataset = QADataset.of(own, codebook, items)
        right = dataset.correct(dataset.logits(reader, torch.arange(len(own))), torch.arange(len(own))).double()
        chance = 1 / (own.choices[..., 0] != NOTHING).sum(1).double()
        return float((right - chance).sum() / (chance * (1 - chance)).sum().sqrt())

    for family in ("relation", "reasoning", "attribute"):
        of = torch.tensor([name.startswith(f"{family}/") for name in tests.names])
        assert abs(above_chance(of)) < 3, family
