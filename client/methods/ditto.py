"""Trains a common model, and a personal one that is held to it (DITTO, Li et al. 2021, Algorithm 1)."""

import torch
from torch import Tensor

from tessera.client.adapters.pq_lora import GLOBAL, LOCAL
from tessera.client.methods.base import LocalTraining, Method, learnt
from tessera.common.registry.methods import DittoSettings


class Ditto(Method):
    """The global branch is averaged; the local one, which answers, pays proximity / 2 |v - w|^2 for being apart from it.

    Half of the steps each.
    """

    settings: DittoSettings

    def train(self, local_training: LocalTraining) -> float:
        """Train the global branch from the average w, then the local branch v near w as it came."""
        first, second = local_training.halves()
        average = _flat(learnt(local_training.model, GLOBAL)).detach()
        local_training.fit([GLOBAL], [GLOBAL], first)
        own = learnt(local_training.model, LOCAL)

        def held(rows: Tensor) -> tuple[Tensor, Tensor]:
            return local_training.loss(rows), self.settings.proximity / 2 * (_flat(own) - average).square().sum()

        return local_training.fit([LOCAL], [LOCAL], second, held)


def _flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in parameters])
