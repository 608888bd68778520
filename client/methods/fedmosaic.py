"""Trains a device's own branch under a gate, beside what others know (FedMosaic, Algorithm 1).

Four things are not the paper's, and settings: the own branch begins the first rounds from what came down; words that a device
never learnt from are answered by what others know alone; some batches are learnt by the own branch alone; there may be no gate
at all, so that the own branch learns and answers as if there were no other.
"""

import torch
from peft import PeftModel
from torch import Tensor

from tessera.client.adapters.attach import activate
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL
from tessera.client.methods.base import BOTH, LocalTraining, Method, answer
from tessera.client.qa_dataset import Dataset
from tessera.common.registry.methods import PQSettings
from tessera.common.utils import counter_rng


class FedMosaic(Method):
    """The local branch travels; what the server made of everybody's comes back as the global one, and stays as it is.

    How the server weighs them is its own matter: `pq` and `fedmosaic` are the same on the device.
    """

    settings: PQSettings
    uploads = LOCAL

    def __init__(self, settings: PQSettings) -> None:
        super().__init__(settings)
        self.answers_with = (LOCAL,) if settings.gate == "none" else BOTH

    def begins_with(self, progress: float) -> tuple[str, ...]:
        """The global branch and, in the shared rounds, the local one too."""
        return BOTH if progress <= self.settings.shared_rounds else (GLOBAL,)

    def train(self, local_training: LocalTraining) -> float:
        """Train the local branch and the gate with both active (Eq. 7), or the local branch alone where there is no gate."""
        chance = self.settings.branch_dropout
        if not chance or self.settings.gate == "none":
            return local_training.fit(self.answers_with, [LOCAL])
        draws = counter_rng.uniform(
            counter_rng.key("branch dropout", local_training.key), torch.arange(local_training.training.steps)
        )
        alone = iter((draws < chance).tolist())

        def dropped(rows: Tensor) -> tuple[Tensor, Tensor]:
            activate(local_training.model, [LOCAL] if next(alone) else BOTH)
            return local_training.loss(rows), torch.zeros(())

        loss = local_training.fit(BOTH, [LOCAL], losses=dropped)
        activate(local_training.model, BOTH)
        return loss

    @torch.no_grad()
    def logits(self, model: PeftModel, own: Dataset, asked: Dataset) -> Tensor:
        """Answer under the gate, or by the own branch, and by the global branch alone where an instruction is in none of the
        `own` questions."""
        gated = answer(model, asked, self.answers_with)
        if not self.settings.gate_by_instruction:
            return gated
        known = {own.questions.instructions[task] for task in set(own.questions.tasks.tolist())}
        foreign = torch.tensor([instruction not in known for instruction in asked.questions.instructions])
        rows = foreign[asked.questions.tasks].to(gated.device)
        if not bool(rows.any()):  # as among a device's own tests: one pass will do
            return gated
        return torch.where(rows[:, None], answer(model, asked, [GLOBAL]), gated)
