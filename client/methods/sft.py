"""Trains every device for itself (supervised fine-tuning)."""

from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.methods.base import LocalTraining, Method


class SFT(Method):
    """Supervised fine-tuning of the local branch. Nothing is sent."""

    uploads: str | None = None

    def train(self, local_training: LocalTraining) -> float:
        """Train the local branch alone."""
        return local_training.fit([LOCAL], [LOCAL])
