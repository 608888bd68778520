"""Teaches a class's average what devices answer to public questions: PerAda (Xie et al. 2024), TAKFL (Morafah et al. 2024).

Devices of all classes answer the same questions by the same choices, so an answer is a teacher for any class. The server has
the towers, the adapters that were sent and the public questions, and so computes all answers itself; no device's question
is among them, and no label is used.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tessera.common.data.questions import NOTHING, choice_logits, divergence
from tessera.common.protocol.adapters import AdapterUpdate
from tessera.common.registry.methods import DistillationSettings, TAKFLSettings
from tessera.common.towers.public_questions import PublicQuestions
from tessera.common.towers.qa_reader import QAReader, instructions
from tessera.common.utils import counter_rng

Tensors = dict[str, Tensor]
ANSWERED_AT_ONCE = 256
"""Public questions of a forward pass that is not trained on."""
ALIKE = 1e-9
"""Divergence from its teacher below which a model has nothing to learn: the only device of a class is its own teacher, and Adam
would make steps of full size of the rounding of a gradient that is zero."""


@dataclass(frozen=True)
class PublicTower:
    """A class's frozen `reader`, with what it is given of the public questions.

    `read` [n, READ], `pieces` [n, n_pieces, 2], `offered` [n, n_choices, dim], `choices` [n, n_choices, 2] and `answers` [n]
    are the questions; `item_embeddings` [3, n_shown, width] the items that they show. All lie on one device.
    """

    reader: nn.Module
    read: Tensor
    pieces: Tensor
    offered: Tensor
    choices: Tensor
    answers: Tensor
    item_embeddings: Tensor

    @classmethod
    def of(cls, reader: QAReader, public: PublicQuestions, image: Tensor, text: Tensor) -> "PublicTower":
        """Ask a `reader` the public questions about items of standardised features [n_items, d], on the features' device."""
        questions, device = public.questions, image.device
        shown, places = torch.unique(questions.pieces[..., 1], return_inverse=True)
        reader = reader.to(device)
        with torch.no_grad():
            item_embeddings = reader.embed_items(image[shown], text[shown])
        return cls(
            reader,
            instructions(questions.instructions)[questions.tasks].to(device),
            torch.stack([questions.pieces[..., 0], places], -1).to(device),
            public.offered.to(device),
            questions.choices.to(device),
            questions.answers.to(device),
            item_embeddings,
        )

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.read)

    @property
    def device(self) -> torch.device:
        """Where answers are computed."""
        return self.item_embeddings.device

    @property
    def offers(self) -> Tensor:
        """Which choices there are, [n, n_choices]."""
        return self.choices[..., 0] != NOTHING

    def logits(self, lora: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """What the reader with plain LoRA, A and B by layer, answers to the questions `rows` [n], [n, n_choices]."""
        layers = {name.rpartition(".")[0] for name in lora}
        adapted = {
            f"{layer}.weight": self.reader.get_parameter(f"{layer}.weight") + lora[f"{layer}.B"] @ lora[f"{layer}.A"]
            for layer in sorted(layers)
        }
        answered = functional_call(self.reader, adapted, (self.read[rows], self.pieces[rows], self.item_embeddings))
        return choice_logits(answered, self.offered[rows], self.choices[rows])

    @torch.no_grad()
    def answer(self, lora: Mapping[str, Tensor]) -> Tensor:
        """Its answers to all questions, [n, n_choices]."""
        placed = {name: value.to(self.device) for name, value in lora.items()}
        parts = torch.split(torch.arange(len(self), device=self.device), ANSWERED_AT_ONCE)
        return torch.cat([self.logits(placed, rows) for rows in parts])


@dataclass(frozen=True)
class Lessons:
    """How the server's models learn from public questions: `steps` batches of `batch`, drawn by `key`, at a constant `rate`."""

    steps: int
    batch: int
    rate: float
    key: int

    @classmethod
    def of(cls, settings: DistillationSettings, batch: int, seed: int) -> "Lessons":
        """As a run's settings say: all models, and all rounds, draw the same batches."""
        key = counter_rng.key("distillation", seed)
        return cls(settings.distillation_steps, batch, settings.distillation_rate, key)

    def rows(self, step: int, n: int) -> Tensor:
        """Which of `n` questions are in the batch of a step, [batch], drawn with replacement."""
        draws = counter_rng.uniform(self.key, torch.tensor(step), torch.arange(self.batch)).double()
        return (draws * n).long()

    def fit(self, tower: PublicTower, begin: Mapping[str, Tensor], loss: Callable[[Tensor, Tensor], Tensor]) -> Tensors:
        """The LoRA that minimises `loss`, which is given what a batch is answered and its rows, from `begin`.

        AdamW without decay, as on devices; the optimiser starts afresh.
        """
        learnt = {name: value.to(tower.device).clone().requires_grad_() for name, value in begin.items()}
        optimizer = torch.optim.AdamW(learnt.values(), self.rate, weight_decay=0.0)
        for step in range(self.steps):
            rows = self.rows(step, len(tower)).to(tower.device)
            optimizer.zero_grad()
            loss(tower.logits(learnt, rows), rows).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return {name: value.detach().cpu() for name, value in learnt.items()}


@dataclass(frozen=True)
class Distiller:
    """Teaches the averages of all classes. `towers` are by tower id."""

    towers: Mapping[str, PublicTower]
    settings: DistillationSettings
    lessons: Lessons

    def taught(self, adapters: Sequence[AdapterUpdate], averages: Mapping[str, Tensors]) -> dict[str, Tensors]:
        """What becomes of the classes' `averages`, by tower id, when they learn what the `adapters` of devices answer."""
        if not self.lessons.steps:
            return dict(averages)
        answers: dict[str, list[Tensor]] = {}
        for sent in adapters:
            answers.setdefault(sent.tower, []).append(self.towers[sent.tower].answer(sent.lora))
        if isinstance(self.settings, TAKFLSettings):
            teachers = [torch.stack(answers[tower]).mean(0) for tower in sorted(answers)]
            return {tower: self._by_class(tower, average, teachers) for tower, average in averages.items()}
        teacher = torch.stack([one for tower in sorted(answers) for one in answers[tower]]).mean(0)
        return {tower: self._from(tower, average, teacher) for tower, average in averages.items()}

    def _from(
        self, tower: str, average: Tensors, teacher: Tensor, held: Tensor | None = None, hold: float = 0
    ) -> Tensors:
        """Learn a teacher's answers [n, n_choices], held to other answers [n, n_choices] by a weight."""
        if float(divergence(teacher, self.towers[tower].answer(average))) < ALIKE:
            return average

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            apart = divergence(teacher[rows], logits)
            return apart if held is None else apart + hold * divergence(held[rows], logits)

        return self.lessons.fit(self.towers[tower], average, loss)

    def _by_class(self, tower: str, average: Tensors, teachers: Sequence[Tensor]) -> Tensors:
        """Learn each class's answers apart, and add the mean of what that changes (task arithmetic, with equal weights)."""
        assert isinstance(self.settings, TAKFLSettings)
        held, hold = self.towers[tower].answer(average), self.settings.self_regularisation
        learnt = [self._from(tower, average, teacher, held, hold) for teacher in teachers]
        return {
            name: value + torch.stack([one[name] - value for one in learnt]).mean(0) for name, value in average.items()
        }
