"""Tests whether what P and Q learn in one tower helps another, whose A and B are aligned with it: the transfer test.

P and Q alone are trained on a task in the tower of one class, then plugged into the towers of the others, which have seen
nothing of the task. Random A and B are the control. It comes before any federation: where nothing carries over between two
towers, no way of merging can help.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.client.adapters.adapted_tower import probe
from tessera.client.adapters.attach import activate, attach, pq_tensors, set_projections
from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.qa_dataset import QADataset
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.questions import Codebook, Questions
from tessera.common.errors import DataError
from tessera.common.registry.methods import PQSettings
from tessera.common.towers.aligned_init import STACKS
from tessera.common.towers.io import load_reader, tower_path
from tessera.common.towers.projections import Projections
from tessera.common.utils import counter_rng
from tessera.server.pretraining.aligned_init import reader_inputs, shared_start

if TYPE_CHECKING:
    from peft import PeftModel

N_BLOCKS, STEPS, BATCH, RATE = 4, 200, 32, 8e-3


@dataclass(frozen=True)
class Carried:
    """Accuracies on the tests of a task: of the tower that learnt, and of another, before and after it got P and Q."""

    alignment: str
    family: str
    task: str
    learnt_by: str
    got_by: str
    own: tuple[float, float]
    other: tuple[float, float]


@dataclass(frozen=True)
class _Tower:
    """An adapted reader and how it sees the items."""

    name: str
    model: "PeftModel"
    item_embeddings: Tensor

    def align(self, start: dict[str, Projections]) -> None:
        """Set A and B, zero P and Q, and let nothing but these be trained."""
        set_projections(self.model, start)
        self.reset()
        activate(self.model, [LOCAL], [LOCAL])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(f"lora_PQ.{LOCAL}" in name)

    def reset(self) -> None:
        """Zero P and Q: the frozen reader."""
        for value in pq_tensors(self.model).values():
            value.zero_()

    def get(self, other: "_Tower") -> None:
        """Take P and Q from another tower."""
        theirs = pq_tensors(other.model)
        for place, value in pq_tensors(self.model).items():
            value.copy_(theirs[place])

    def learn(self, questions: QADataset) -> None:
        """Train P and Q."""
        reader = self.model.get_base_model()
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], RATE, weight_decay=0.0)
        for step in range(STEPS):
            draws = counter_rng.uniform(counter_rng.key("transfer", step), torch.arange(BATCH)).double()
            rows = (draws * len(questions)).long()
            optimizer.zero_grad()
            questions.loss(questions.logits(reader, rows), rows).backward()
            optimizer.step()

    @torch.no_grad()
    def score(self, questions: QADataset) -> float:
        """Accuracy on all questions."""
        return questions.accuracy(questions.logits(self.model.get_base_model(), torch.arange(len(questions))))


def transfer(
    dataset: Path,
    classes: Sequence[str],
    alignments: Sequence[str],
    part: str,
    rank: int,
    advance: Callable[[int], None],
) -> list[Carried]:
    """Try all tasks with `part` in their name, from each of `classes` to each other, with each alignment.

    `advance` is called with the number of trainings before the first, and with 0 after each. Raises `DataError` where no
    task is called so, or a tower was not fitted.
    """
    tasks = list(_tasks(dataset, part))
    if not tasks:
        raise DataError(f"{dataset} has questions of no task with {part!r} in its name")
    towers, codebook = _towers(dataset, classes, rank), Codebook.load(dataset / "questions" / "codebook.safetensors")
    advance(len(tasks) * len(alignments) * len(classes))
    found = []
    for alignment in alignments:
        pq = PQSettings.model_validate({"name": "pq", "blocks": N_BLOCKS, "alignment": alignment})
        for name, start in shared_start(dataset, classes, rank, pq).items():
            towers[name].align(start)
        for learnt, asked in tasks:
            for source in towers.values():
                found += _carry(alignment, source, towers, learnt, asked, codebook)
                advance(0)
    return found


def _carry(
    alignment: str, source: _Tower, towers: dict[str, _Tower], learnt: Questions, asked: Questions, codebook: Codebook
) -> list[Carried]:
    for tower in towers.values():
        tower.reset()
    tests = {name: QADataset.of(asked, codebook, tower.item_embeddings) for name, tower in towers.items()}
    before = {name: tower.score(tests[name]) for name, tower in towers.items()}
    source.learn(QADataset.of(learnt, codebook, source.item_embeddings))
    own = before[source.name], source.score(tests[source.name])
    found = []
    for name, tower in towers.items():
        if name != source.name:
            tower.get(source)
            other = before[name], tower.score(tests[name])
            task = asked.names[int(asked.tasks[0])]
            found.append(Carried(alignment, task.split("/")[0], task, source.name, name, own, other))
    return found


def _towers(dataset: Path, classes: Sequence[str], rank: int) -> dict[str, _Tower]:
    inputs = reader_inputs(load_catalogue(dataset))
    towers = {}
    for name in classes:
        reader = load_reader(tower_path(dataset, name))
        with torch.no_grad():
            item_embeddings = reader.embed_items(inputs.image, inputs.text)
        model = attach(reader, STACKS, rank, partial(probe, item_embeddings=item_embeddings), N_BLOCKS)
        towers[name] = _Tower(name, model, item_embeddings)
    return towers


def _tasks(dataset: Path, part: str) -> Iterator[tuple[Questions, Questions]]:
    """Training and test questions of each task."""
    for folder in sorted((dataset / "questions").glob("client-*")):
        learnt, asked = (Questions.load(folder / f"{name}.safetensors") for name in ("train", "test"))
        for task, name in enumerate(learnt.names):
            if part in name:
                yield learnt.take(learnt.tasks == task), asked.take(asked.tasks == asked.names.index(name))


def summary(found: Sequence[Carried]) -> list[tuple[str, ...]]:
    """Mean gains in points with their standard errors, by family, alignment and pair, and over all."""
    groups: dict[tuple[str, str, str, str], list[Carried]] = {}
    for one in found:
        for family in (one.family, "all"):
            for pair in ((one.learnt_by, one.got_by), ("all", "all")):
                groups.setdefault((family, one.alignment, *pair), []).append(one)
    rows: list[tuple[str, ...]] = []
    for group, ones in sorted(groups.items()):
        own, other = (
            np.array([100 * (after - before) for before, after in column])
            for column in zip(*((one.own, one.other) for one in ones), strict=True)
        )
        # Of a gain that may be none, no share.
        share = f"{other.mean() / own.mean():.0%}" if own.mean() > 2 * _error(own) else "-"
        rows.append((*group, str(len({one.task for one in ones})), _gain(own), _gain(other), share))
    return rows


def _gain(points: NDArray[np.float64]) -> str:
    return f"{points.mean():+.1f} ({_error(points):.1f})"


def _error(points: NDArray[np.float64]) -> float:
    return float(points.std() / max(1, len(points) - 1) ** 0.5)
