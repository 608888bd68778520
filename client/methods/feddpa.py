"""Trains a global and a local adapter, mixed for each question by how familiar it is (FedDPA, Long et al. 2024)."""

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import normalize

from tessera.client.adapters.pq_lora import GLOBAL, LOCAL, weigh
from tessera.client.methods.base import ASKED_AT_ONCE, BOTH, LocalTraining, Method
from tessera.client.qa_dataset import Dataset

MOST = 0.5
"""What the local branch counts in training, and for a question just like the device's own."""
REFERENCES = 64
"""The device's own questions, spread evenly over them, that a new one is compared with."""


class FedDPA(Method):
    """Branches count MOST * s (local) and 1 - MOST * s (global), s the mean cosine of the frozen reader's answers to the
    question and to the device's own training questions, or 0 where that is negative.

    The paper draws five of these for each question, which is the same in expectation. Half of the steps for each branch.
    """

    answers_with = BOTH

    def prepare(self, model: PeftModel) -> None:
        """Let the branches count as they do in training."""
        super().prepare(model)
        _mix(model, torch.tensor(MOST))

    def train(self, local_training: LocalTraining) -> float:
        """Train the global branch alone, then the local one beside it."""
        first, second = local_training.halves()
        local_training.fit([GLOBAL], [GLOBAL], first)
        return local_training.fit(BOTH, [LOCAL], second)

    @torch.no_grad()
    def logits(self, model: PeftModel, own: Dataset, asked: Dataset) -> Tensor:
        """Answer with the mix that fits each question."""
        reader = model.get_base_model()
        parts = torch.split(torch.arange(len(asked)), ASKED_AT_ONCE)
        with model.disable_adapter():
            spread = torch.linspace(0, len(own) - 1, min(REFERENCES, len(own))).long()
            familiar = normalize(own.vectors(reader, spread), dim=1).mean(0)
            cosines = [normalize(asked.vectors(reader, rows), dim=1) @ familiar for rows in parts]
        self.prepare(model)
        logits = []
        for rows, cosine in zip(parts, cosines, strict=True):
            _mix(model, MOST * cosine.clamp(min=0)[:, None, None])
            logits.append(asked.logits(reader, rows))
        self.prepare(model)
        return torch.cat(logits)


def _mix(model: PeftModel, local: Tensor) -> None:
    weigh(model, {LOCAL: local, GLOBAL: 1 - local})
