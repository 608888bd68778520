"""Defines what a method is: how a device trains its two branches in a round, which of them travels, and how it answers.

A step is one batch forward and backward, and all methods take the same number of them: one that trains its branches by
separate losses gives each half, as FedMosaic's comparison does (A.6).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from tessera.client.adapters.attach import activate
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL, is_plain, weigh
from tessera.client.qa_dataset import Dataset, QADataset
from tessera.common.config.settings import MosaicSettings
from tessera.common.registry.component import ComponentSettings
from tessera.common.utils import counter_rng

BOTH = (LOCAL, GLOBAL)
ASKED_AT_ONCE = 256
"""Questions of a forward pass that is not trained on."""


class Taught(NamedTuple):
    """Public questions, and what the server answers to them, [n, n_choices]."""

    questions: QADataset
    logits: Tensor


@dataclass(frozen=True)
class LocalTraining:
    """One round of one device: its adapted reader, the questions it learns from, and a `key` of its own for the draws.

    `rates` is the share of its rates that the round has; `taught` what came down for methods that share answers.
    """

    model: PeftModel
    dataset: Dataset
    training: MosaicSettings
    key: int
    rates: float = 1.0
    taught: Taught | None = None

    def rows(self, step: int) -> Tensor:
        """Which questions are in the batch of a step, [batch], drawn with replacement."""
        places = torch.arange(self.training.batch)
        draws = counter_rng.uniform(self.key, torch.tensor(step), places).double()
        return (draws * len(self.dataset)).long()

    def loss(self, rows: Tensor) -> Tensor:
        """Loss of a batch, as the model's branches are set."""
        return self.dataset.objective(self.model.get_base_model(), rows)

    def fit(
        self,
        branches: Sequence[str],
        trained: Sequence[str],
        steps: range | None = None,
        losses: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> float:
        """Train `trained` while `branches` are active, in all or some of the round's steps, and return the mean loss.

        `losses` gives for a batch's rows the loss that is returned and what is minimised beside it; by default the
        cross-entropy and nothing. The optimiser starts afresh.
        """
        activate(self.model, branches, trained)
        optimizer, steps = self._optimizer(), range(self.training.steps) if steps is None else steps
        total = 0.0
        for step in steps:
            rows = self.rows(step)
            loss, more = (self.loss(rows), None) if losses is None else losses(rows)
            optimizer.zero_grad()
            (loss if more is None else loss + more).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += float(loss.detach())
        self.model.zero_grad()
        return total / max(1, len(steps))

    def halves(self) -> tuple[range, range]:
        """The steps of a round, for two branches with a loss each."""
        half = self.training.steps // 2
        return range(half), range(half, self.training.steps)

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW over what requires a gradient now, at rates that stay over the round, and without decay."""
        groups: dict[float, list[Tensor]] = {}
        pq = self.training.pq
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                full = self.training.learning_rate if is_plain(name) or pq is None else pq.pq_learning_rate
                rate = self.rates * full
                groups.setdefault(rate, []).append(parameter)
        return torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for rate, parameters in groups.items()], weight_decay=0.0, fused=True
        )


class Method(ABC):
    """One method on the device. It holds its settings alone: all that is learnt is in the model's branches.

    `uploads` is the branch that is sent, None where nothing is; `receives` the one that what the server made of all of them
    is put into; `answers_with` the branches that are active when the device answers.
    """

    uploads: str | None = GLOBAL
    receives: str = GLOBAL
    answers_with: tuple[str, ...] = (LOCAL,)

    def __init__(self, settings: ComponentSettings) -> None:
        self.settings = settings

    def prepare(self, model: PeftModel) -> None:
        """Set the model up as this method needs it, after it is made or restored."""
        activate(model, self.answers_with)
        weigh(model, None)

    def begins_with(self, progress: float) -> tuple[str, ...]:
        """The branches that a round of training begins with what came down in; at its end `progress` of the rounds are done."""
        return (self.receives,)

    @abstractmethod
    def train(self, local_training: LocalTraining) -> float:
        """Train for a round, and return the mean loss, as the device would answer."""

    def logits(self, model: PeftModel, own: Dataset, asked: Dataset) -> Tensor:
        """Answer all of `asked`, [n, n_choices]. A method may look at the questions that the device learnt from, `own`."""
        return answer(model, asked, self.answers_with)


def learnt(model: PeftModel, branch: str) -> list[Tensor]:
    """The parameters of a branch, the model's own, in the same order for both; the gates belong to neither."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if f".{branch}" in name.partition(".lora_")[2] and ".lora_gate." not in name
    ]


@torch.no_grad()
def answer(model: PeftModel, asked: Dataset, branches: Sequence[str]) -> Tensor:
    """Logits of all questions with the given branches active, [n, n_choices]."""
    activate(model, branches)
    parts = torch.split(torch.arange(len(asked)), ASKED_AT_ONCE)
    return torch.cat([asked.logits(model.get_base_model(), rows) for rows in parts])
