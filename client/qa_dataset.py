"""Holds questions as a device answers them: an answer is a vector, and the choice that it points at most is taken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tessera.common.data.questions import NOTHING, Codebook, Questions, choice_logits
from tessera.common.metrics.ranking import standing
from tessera.common.towers.qa_reader import instructions


class Asked(Protocol):
    """Questions of one or more tasks, whatever they are like: `tasks` [n] are indices into `names`."""

    @property
    def tasks(self) -> Tensor:
        """Which task each question is of, [n]."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""

    @property
    def instructions(self) -> tuple[str, ...]:
        """What tasks are told apart by where a device meets another's."""

    def __len__(self) -> int:
        """Return the number of questions."""


class Dataset(Protocol):
    """Questions as a tower of some kind is asked them."""

    @property
    def questions(self) -> Asked:
        """The questions themselves."""

    @property
    def even(self) -> Tensor:
        """Logits of chance, [n, n_choices]: -inf where nothing is offered."""

    def __len__(self) -> int:
        """Return the number of questions."""

    def vectors(self, reader: Callable[..., Any], rows: Tensor) -> Tensor:
        """What `reader` makes of the questions `rows` [n], [n, dim]."""

    def logits(self, reader: Callable[..., Any], rows: Tensor) -> Tensor:
        """What it says of their choices, [n, n_choices]."""

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the right choices."""

    def objective(self, reader: Callable[..., Any], rows: Tensor) -> Tensor:
        """What `reader` is trained by on the questions `rows`."""

    def accuracy(self, logits: Tensor) -> float:
        """Mean chance to be answered rightly, of all that are chosen."""


@dataclass(frozen=True)
class QADataset:
    """Questions with what a reader of one class needs to be asked them.

    `read` [n, READ] are the words of each question's instruction, `offered` [n, n_choices, dim] the vectors of its choices,
    `item_embeddings` [3, n_items, width] the items as `QAReader.embed_items` shows them.
    """

    questions: Questions
    read: Tensor
    offered: Tensor
    item_embeddings: Tensor

    @classmethod
    def of(cls, questions: Questions, codebook: Codebook, item_embeddings: Tensor) -> "QADataset":
        """Look words and choices up once for all rounds, on the device that `item_embeddings` is on."""
        return cls.offering(questions, codebook.vectors(questions.choices), item_embeddings)

    @classmethod
    def offering(cls, questions: Questions, offered: Tensor, item_embeddings: Tensor) -> "QADataset":
        """The same with the vectors of the choices, [n, n_choices, dim]."""
        read, device = instructions(questions.instructions)[questions.tasks], item_embeddings.device
        return cls(questions, read.to(device), offered.to(device), item_embeddings)

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.questions)

    def vectors(self, reader: Callable[..., Tensor], rows: Tensor) -> Tensor:
        """What `reader` says to the questions `rows` [n], [n, dim]."""
        pieces = self.questions.pieces[rows].to(self.item_embeddings.device)
        return reader(self.read[rows], pieces, self.item_embeddings)

    def logits(self, reader: Callable[..., Tensor], rows: Tensor) -> Tensor:
        """What the answers say of their choices, [n, n_choices], as `choice_logits`."""
        return choice_logits(self.vectors(reader, rows), self.offered[rows], self.questions.choices[rows])

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the right choices."""
        return cross_entropy(logits, self.questions.answers[rows].to(logits.device))

    def objective(self, reader: Callable[..., Tensor], rows: Tensor) -> Tensor:
        """The loss of what `reader` says."""
        return self.loss(self.logits(reader, rows), rows)

    @property
    def even(self) -> Tensor:
        """Logits of chance, [n, n_choices]."""
        offered = (self.questions.choices[..., 0] != NOTHING).to(self.offered.device)
        return torch.zeros_like(self.offered[..., 0]).masked_fill(~offered, -torch.inf)

    def correct(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Chance of each question to be answered rightly, [n]: 1 or 0, or its share where the best choices are tied."""
        above, ties = standing(logits, self.questions.answers[rows].to(logits.device), logits.isfinite())
        return (above == 0) / ties

    def accuracy(self, logits: Tensor) -> float:
        """Mean chance to be answered rightly, over all questions; `logits` [n, n_choices] are those of all."""
        return float(self.correct(logits, torch.arange(len(self))).double().mean())
