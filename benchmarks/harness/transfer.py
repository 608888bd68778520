"""Tests whether what P and Q learn in one tower helps another, whose A and B are aligned with it: the transfer test.

P and Q alone are trained on a task in the tower of one class, then plugged into the towers of the others, which have seen
nothing of the task. Random A and B are the control. It comes before any federation: where nothing carries over between two
towers, no way of merging can help.

Where classes are other people's models that are asked in words, a score is no accuracy but the log-likelihood of a token of the
right answer, in nats: few questions move it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tessera.client.adapters.adapted_tower import probe
from tessera.client.adapters.attach import activate, attach, pq_tensors, set_projections
from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.language.dataset import ASKED_AT_ONCE, TextDataset
from tessera.client.qa_dataset import Dataset, QADataset
from tessera.common.config.loading import parse_settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.questions import Codebook, Questions
from tessera.common.data.text_questions import TextQuestions
from tessera.common.errors import DataError
from tessera.common.registry.methods import PQSettings
from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.aligned_init import STACKS, aligned_init_path, load_aligned_init, stacks_of, tower_folder
from tessera.common.towers.io import load_reader, tower_path
from tessera.common.towers.models.folder import take_model
from tessera.common.towers.models.load import MODEL, load_text_model
from tessera.common.towers.projections import Projections
from tessera.common.utils import counter_rng
from tessera.deploy.provisioning.towers import align
from tessera.server.pretraining.aligned_init import reader_inputs, shared_start
from tessera.server.pretraining.text_alignment import common_places, words_start

if TYPE_CHECKING:
    from peft import PeftModel

N_BLOCKS, STEPS, BATCH, RATE = 4, 200, 32, 8e-3


@dataclass(frozen=True)
class Trial:
    """What is tried: classes, alignments and seeds with each other, on tasks with `part` in their names."""

    classes: Sequence[str]
    alignments: Sequence[str]
    models: Mapping[str, str] = field(default_factory=dict)
    """Where the classes are other people's models, what names them: all of them are, or none."""
    part: str = ""
    rank: int = 16
    seeds: Sequence[int] = (0,)
    """Each draws other batches and, of models, other random matrices."""
    steps: int = STEPS
    batch: int = BATCH
    blocks: int = N_BLOCKS


@dataclass(frozen=True)
class Carried:
    """Scores on the tests of a task: of the tower that learnt, and of another, before and after it got P and Q."""

    alignment: str
    family: str
    task: str
    learnt_by: str
    got_by: str
    own: tuple[float, float]
    other: tuple[float, float]


@dataclass(frozen=True)
class _Tower:
    """An adapted tower, and how it reads questions."""

    name: str
    model: "PeftModel"
    read: Callable[[Any], Dataset]

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

    def learn(self, questions: Dataset, trial: Trial, seed: int) -> None:
        """Train P and Q."""
        reader = self.model.get_base_model()
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], RATE, weight_decay=0.0)
        for step in range(trial.steps):
            key = counter_rng.key("transfer", step, *([seed] if seed else []))
            draws = counter_rng.uniform(key, torch.arange(trial.batch)).double()
            optimizer.zero_grad()
            questions.objective(reader, (draws * len(questions)).long()).backward()
            optimizer.step()

    @torch.no_grad()
    def score(self, questions: Dataset) -> float:
        """Accuracy on all questions, or of those in words the log-likelihood of a token of the right answer."""
        reader, rows = self.model.get_base_model(), torch.arange(len(questions))
        if not isinstance(questions, TextDataset):
            return questions.accuracy(questions.logits(reader, rows))
        parts = torch.split(rows, ASKED_AT_ONCE)
        return -sum(float(questions.objective(reader, part)) * len(part) for part in parts) / len(rows)


def transfer(dataset: Path, trial: Trial, advance: Callable[[int], None]) -> list[Carried]:
    """Try a trial's tasks, from each of its classes to each other, with each alignment and seed.

    `advance` is called with the number of trainings before the first, and with 0 after each. Raises `DataError` where no
    task is called so, or a tower is not there.
    """
    tasks = list(_tasks(dataset, trial.part))
    if not tasks:
        raise DataError(f"{dataset} has questions of no task with {trial.part!r} in its name")
    for name, named in trial.models.items():
        take_model(named, tower_folder(dataset, name))
    towers = _models(dataset, trial) if trial.models else _readers(dataset, trial)
    advance(len(tasks) * len(trial.alignments) * len(trial.seeds) * len(trial.classes))
    found, start = [], dict[str, dict[str, Projections]]()
    for alignment, seed in itertools.product(trial.alignments, trial.seeds):
        if seed == trial.seeds[0] or (alignment == "random" and trial.models):
            start = _start(dataset, trial, alignment, seed)
        for name, own in start.items():
            towers[name].align(own)
        for learnt, asked in tasks:
            for source in towers.values():
                found += _carry(alignment, source, towers, learnt, asked, trial, seed)
                advance(0)
    return found


def _start(dataset: Path, trial: Trial, alignment: str, seed: int) -> dict[str, dict[str, Projections]]:
    """A and B of all classes. Of models those of an alignment are found again where a run or a trial has made them."""
    method = {"name": "pq", "blocks": trial.blocks, "alignment": alignment}
    pq = PQSettings.model_validate(method)
    if not trial.models:
        return shared_start(dataset, trial.classes, trial.rank, pq)
    if alignment == "random":
        return words_start(dataset, trial.classes, trial.rank, pq, seed)
    mosaic = {"classes": trial.classes, "models": trial.models, "rank": trial.rank, "method": method}
    data = {"folder": dataset.name, "kind": "text-questions"}
    settings = parse_settings({"name": "transfer", "strategy": "fedmosaic", "data": data, "mosaic": mosaic}, "transfer")
    align(dataset, settings)
    return {
        name: load_aligned_init(aligned_init_path(tower_folder(dataset, name), settings.mosaic))
        for name in trial.classes
    }


def _carry(
    alignment: str, source: _Tower, towers: dict[str, _Tower], learnt: Any, asked: Any, trial: Trial, seed: int
) -> list[Carried]:
    for tower in towers.values():
        tower.reset()
    tests = {name: tower.read(asked) for name, tower in towers.items()}
    before = {name: tower.score(tests[name]) for name, tower in towers.items()}
    source.learn(source.read(learnt), trial, seed)
    own = before[source.name], source.score(tests[source.name])
    found = []
    for name, tower in towers.items():
        if name != source.name:
            tower.get(source)
            other = before[name], tower.score(tests[name])
            task = asked.names[int(asked.tasks[0])]
            found.append(Carried(alignment, task.split("/")[0], task, source.name, name, own, other))
    return found


def _readers(dataset: Path, trial: Trial) -> dict[str, _Tower]:
    inputs = reader_inputs(load_catalogue(dataset))
    codebook, towers = Codebook.load(dataset / "questions" / "codebook.safetensors"), {}
    for name in trial.classes:
        reader = load_reader(tower_path(dataset, name))
        with torch.no_grad():
            item_embeddings = reader.embed_items(inputs.image, inputs.text)
        model = attach(reader, STACKS, trial.rank, partial(probe, item_embeddings=item_embeddings), trial.blocks)
        read = partial(QADataset.of, codebook=codebook, item_embeddings=item_embeddings)
        towers[name] = _Tower(name, model, read)
    return towers


def _models(dataset: Path, trial: Trial) -> dict[str, _Tower]:
    models = {name: load_text_model(tower_folder(dataset, name) / MODEL) for name in trial.classes}
    shared = common_places({name: placement(one, stacks_of(one), trial.blocks)[1] for name, one in models.items()})
    (example, _), *_ = _tasks(dataset, trial.part)
    towers = {}
    for name, bare in models.items():
        read = partial(TextDataset.of, model=bare)
        asked = read(example.take(torch.arange(2)))
        model = attach(bare, stacks_of(bare), trial.rank, partial(_loss, asked), trial.blocks, shared=shared)
        towers[name] = _Tower(name, model, read)
    return towers


def _loss(asked: TextDataset, model: Any) -> Tensor:
    return asked.objective(model, torch.arange(len(asked)))[None]


def _tasks(dataset: Path, part: str) -> Iterator[tuple[Any, Any]]:
    """Training and test questions of each task, of either kind."""
    for folder in sorted((dataset / "questions").glob("client-*")):
        words = (folder / "train.jsonl").is_file()
        kind, of = (TextQuestions, "jsonl") if words else (Questions, "safetensors")
        learnt, asked = (kind.load(folder / f"{name}.{of}") for name in ("train", "test"))
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
