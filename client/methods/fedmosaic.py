"""Trains a device's own branch under a gate, beside what others know (FedMosaic, Algorithm 1)."""

from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.methods.base import BOTH, LocalTraining, Method


class FedMosaic(Method):
    """The local branch travels; what the server made of everybody's comes back as the global one, and stays as it is.

    How the server weighs them is its own matter: `pq` and `fedmosaic` are the same on the device.
    """

    uploads = LOCAL
    answers_with = BOTH

    def train(self, local_training: LocalTraining) -> float:
        """Train the local branch and the gate with both active (Eq. 7)."""
        return local_training.fit(BOTH, [LOCAL])
