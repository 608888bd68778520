"""Trains shared and personal parameters together, by one loss (FedSim, Pillutla et al. 2022, Algorithm 2)."""

import torch
from peft import PeftModel

from tessera.client.adapters.pq_lora import GLOBAL, LOCAL, weigh
from tessera.client.methods.base import BOTH, LocalTraining, Method


class FedSim(Method):
    """The layer's output is the sum of the base and both branches, without a gate. The global branch is averaged.

    Before the first average the two branches are twins, since they start alike.
    """

    answers_with = BOTH

    def prepare(self, model: PeftModel) -> None:
        """Let both branches count in full."""
        super().prepare(model)
        full = torch.ones(())
        weigh(model, {LOCAL: full, GLOBAL: full})

    def train(self, local_training: LocalTraining) -> float:
        """Train both branches at once."""
        return local_training.fit(BOTH, BOTH)
