"""Learns from devices' answers to public questions, and answers them itself (FedMKT, Fan et al. 2025).

No adapter is sent. The server has one of its own, on the largest class's tower, and its answers are what devices get.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tessera.common.data.questions import divergence, surprise
from tessera.common.registry.methods import FedMKTSettings
from tessera.common.towers.projections import random_projections
from tessera.common.utils import counter_rng
from tessera.server.adapters.distillation import Lessons, PublicTower, Tensors


@dataclass
class LogitSharing:
    """The server's model: its `tower`, and plain LoRA on it, A and B by layer."""

    tower: PublicTower
    settings: FedMKTSettings
    lessons: Lessons
    lora: Tensors
    _answers: Tensor | None = field(default=None, repr=False)

    @property
    def answers(self) -> Tensor:
        """What the server answers as it is now, [n, n_choices], 0 where nothing is offered."""
        if self._answers is None:
            self._answers = self.tower.answer(self.lora)
        return self._answers.masked_fill(~self.tower.offers, 0).cpu()

    def learn(self, sent: Mapping[str, Tensor]) -> None:
        """Learn from devices' answers [n, n_choices], by client.

        Of each question it takes the answer that is nearest to the right choice, where that is nearer than its own. It
        minimises fine_tuning * cross-entropy + (1 - fine_tuning) * KL divergence from what it took.
        """
        best, teacher = nearest([sent[client].to(self.tower.device) for client in sorted(sent)], self.tower)
        own = surprise(self.tower.answer(self.lora), self.tower.answers)
        taken, right = best < own, self.settings.fine_tuning

        def loss(logits: Tensor, rows: Tensor) -> Tensor:
            found, learnt = right * surprise(logits, self.tower.answers[rows]).mean(), taken[rows]
            if not bool(learnt.any()):
                return found
            return found + (1 - right) * divergence(teacher[rows][learnt], logits[learnt])

        self.restore(self.lessons.fit(self.tower, self.lora, loss))

    def restore(self, lora: Tensors) -> None:
        """Take up an adapter."""
        self.lora, self._answers = lora, None


def nearest(answers: list[Tensor], tower: PublicTower) -> tuple[Tensor, Tensor]:
    """Cross-entropy [n] and logits [n, n_choices], -inf where nothing is offered, of each question's best answer."""
    among = torch.stack([one.masked_fill(~tower.offers, -torch.inf) for one in answers])
    losses = torch.stack([surprise(one, tower.answers) for one in among])
    best, client = losses.min(0)
    return best, among[client, torch.arange(len(tower), device=tower.device)]


def begin(tower: PublicTower, layers: list[str], rank: int, seed: int) -> Tensors:
    """The start of the server's adapter: A drawn by seed and layer, B zero."""
    lora: Tensors = {}
    for layer in layers:
        d_out, d_in = tower.reader.get_parameter(f"{layer}.weight").shape
        lora[f"{layer}.A"] = random_projections(counter_rng.key("server", seed, layer), d_in, d_out, rank).a
        lora[f"{layer}.B"] = torch.zeros(d_out, rank)
    return lora
