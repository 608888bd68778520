"""Trains one adapter from a device's own questions and from the server's public answers (FedMKT, Fan et al. 2025)."""

import torch
from torch import Tensor

from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.methods.base import LocalTraining, Method, answer
from tessera.common.data.questions import divergence, surprise
from tessera.common.registry.methods import FedMKTSettings
from tessera.common.utils import counter_rng


class FedMKT(Method):
    """The local branch is all there is, and no branch is sent: the device's answers to public questions are.

    Of the server's answers it takes those that are nearer to the right choice than its own. A step then reads a batch of its
    own questions and one of these, so there are half as many. In the first round, and where no answer is nearer, all batches
    are its own.
    """

    settings: FedMKTSettings
    uploads: str | None = None

    def begins_with(self, progress: float) -> tuple[str, ...]:
        """None: answers come down, and no branch."""
        return ()

    def train(self, local_training: LocalTraining) -> float:
        """Minimise fine_tuning * cross-entropy + (1 - fine_tuning) * KL divergence from the server's answers."""
        rows = _nearer(local_training)
        if not len(rows):
            return local_training.fit([LOCAL], [LOCAL])
        assert local_training.taught is not None
        (public, logits), reader = local_training.taught, local_training.model.get_base_model()
        drawn = iter(_batches(local_training, rows))

        def taught(own: Tensor) -> tuple[Tensor, Tensor]:
            at, loss = next(drawn), local_training.loss(own)
            distilled = divergence(logits[at], public.logits(reader, at))
            return loss, (1 - self.settings.fine_tuning) * (distilled - loss)

        first, _ = local_training.halves()
        return local_training.fit([LOCAL], [LOCAL], first, taught)


def _nearer(local_training: LocalTraining) -> Tensor:
    """Public questions, [n], to which the server's answer is nearer to the right choice than the device's own."""
    if local_training.taught is None:
        return torch.zeros(0, dtype=torch.long)
    public, logits = local_training.taught
    own = answer(local_training.model, public, [LOCAL])
    return (surprise(logits, public.questions.answers) < surprise(own, public.questions.answers)).nonzero()[:, 0].cpu()


def _batches(local_training: LocalTraining, rows: Tensor) -> list[Tensor]:
    """A batch of `rows` [n] for each step, drawn with replacement."""
    training, key = local_training.training, counter_rng.key("public", local_training.key)
    draws = [
        counter_rng.uniform(key, torch.tensor(step), torch.arange(training.batch)) for step in range(training.steps)
    ]
    return [rows[(draw.double() * len(rows)).long()] for draw in draws]
