"""Holds questions in words as one model reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tessera.common.data.text_questions import TextQuestions
from tessera.common.metrics.ranking import standing
from tessera.common.towers.models.base import TextModel, offered_mask

ASKED_AT_ONCE = 32
"""Questions of a forward pass that is not trained on: a language model's states are large."""


@dataclass(frozen=True)
class TextDataset:
    """Questions with their tokens, `batch`, by the model that reads them."""

    questions: TextQuestions
    batch: Any

    @classmethod
    def of(cls, questions: TextQuestions, model: TextModel) -> "TextDataset":
        """Cut questions into tokens once for all rounds. Raises `DataError` for questions that the model cannot answer."""
        return cls(questions, model.read(questions).to(model.device))

    def take(self, rows: Tensor) -> "TextDataset":
        """Some of the questions, whose tokens are there already."""
        rows = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return TextDataset(self.questions.take(rows), self.batch.take(rows))

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.questions)

    @property
    def even(self) -> Tensor:
        """Logits of chance, [n, n_choices]."""
        offered = offered_mask(self.questions)
        return torch.zeros(offered.shape).masked_fill(~offered, -torch.inf)

    @property
    def written(self) -> Tensor:
        """Rows of the questions to be answered in words, [n_written]."""
        return (self.questions.right < 0).nonzero()[:, 0]

    def vectors(self, reader: Any, rows: Tensor) -> Tensor:
        """What the model makes of the prompts of `rows` [n], [n, width]."""
        found: Tensor = reader.vectors(self.batch.take(rows))
        return found

    def logits(self, reader: Callable[..., Tensor], rows: Tensor) -> Tensor:
        """What the model says of the choices of `rows` [n], [n, n_choices]; -inf where there are none."""
        if len(rows) <= ASKED_AT_ONCE:
            return reader(self.batch.take(rows))
        return torch.cat([reader(self.batch.take(part)) for part in torch.split(rows, ASKED_AT_ONCE)])

    def loss(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Mean cross-entropy of the right choices; questions without choices count nothing."""
        right = self.questions.right[rows].to(logits.device)
        return cross_entropy(logits[right >= 0], right[right >= 0])

    def objective(self, reader: Any, rows: Tensor) -> Tensor:
        """What the model is trained by: the answers' tokens, or the right choices where it compares."""
        found: Tensor = reader.loss(self.batch.take(rows))
        return found

    def accuracy(self, logits: Tensor) -> float:
        """Mean chance to be answered rightly over the questions with choices; NaN where there are none."""
        right = self.questions.right.to(logits.device)
        chosen = right >= 0
        above, ties = standing(logits[chosen], right[chosen], logits[chosen].isfinite())
        return float(((above == 0) / ties).double().mean())
