"""Trains a common model, and a personal one that is held to it (DITTO, Li et al. 2021, Algorithm 1)."""

import torch
from torch import Tensor

from tessera.client.adapters.pq_lora import GLOBAL, LOCAL
from tessera.client.methods.base import LocalTraining, Method, learnt
from tessera.common.registry.methods import DittoSettings


class Ditto(Method):
    """The global branch is averaged; the local one, which answers, pays proximity / 2 |v - w|^2 for being apart from it.

    Half of the steps each. PerAda (Xie et al. 2024) is the same on the device: what it adds is a distillation on the
    server, from the logits of all devices on public questions.
    """

    settings: DittoSettings

    def train(self, lesson: LocalTraining) -> float:
        """Train the global branch from the average w, then the local branch v near w as it came."""
        first, second = lesson.halves()
        average = _flat(learnt(lesson.model, GLOBAL)).detach()
        lesson.fit([GLOBAL], [GLOBAL], first)
        own = learnt(lesson.model, LOCAL)

        def held(rows: Tensor) -> tuple[Tensor, Tensor]:
            return lesson.loss(rows), self.settings.proximity / 2 * (_flat(own) - average).square().sum()

        return lesson.fit([LOCAL], [LOCAL], second, held)


def _flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([parameter.flatten() for parameter in parameters])
