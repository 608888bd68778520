"""Trains a teacher that knows the device and the average, and a student that is averaged (FedDAT, Chen et al. 2024)."""

import torch
from torch import Tensor
from torch.func import functional_call

from tessera.client.adapters.pq_lora import GLOBAL, LOCAL, weigh
from tessera.client.methods.base import BOTH, LocalTraining, Method
from tessera.common.data.questions import divergence

HALF, NONE, FULL = torch.tensor(0.5), torch.tensor(0.0), torch.tensor(1.0)


class FedDAT(Method):
    """The teacher is the mean of the local branch and of the global one as it came, the student the global branch.

    Each learns from the right choices and from the other's probabilities. A batch is read twice, so there are half as many.
    The device answers with the student: the teacher's copy of the average is gone after the round.
    """

    answers_with = (GLOBAL,)

    def train(self, local_training: LocalTraining) -> float:
        """Train the local branch in the teacher and the global one as the student, by mutual distillation."""
        model, dataset = local_training.model, local_training.dataset
        reader = model.get_base_model()
        came = {name: value.detach().clone() for name, value in reader.named_parameters() if f".{GLOBAL}." in name}

        def taught(rows: Tensor) -> tuple[Tensor, Tensor]:
            weigh(model, {LOCAL: NONE, GLOBAL: FULL})
            student = dataset.logits(reader, rows)
            weigh(model, {LOCAL: HALF, GLOBAL: HALF})
            teacher = dataset.logits(lambda *asked: functional_call(reader, came, asked), rows)
            distilled = divergence(teacher.detach(), student) + divergence(student.detach(), teacher)
            return dataset.loss(student, rows), dataset.loss(teacher, rows) + distilled

        first, _ = local_training.halves()
        return local_training.fit(BOTH, BOTH, first, taught)
