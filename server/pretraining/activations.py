"""Records what the layers that carry P and Q receive and output while a reader answers public questions.

The gradients of the answers by those outputs say how much each output matters; alignment uses all three.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tessera.common.data.questions import NOTHING
from tessera.common.towers.qa_reader import QAReader
from tessera.common.utils import counter_rng
from tessera.server.pretraining.alignment import Activations
from tessera.server.pretraining.reader_training import QuestionBatch, ReaderInputs

DIRECTIONS = 2
"""Random directions of the answers by which gradients are taken, beside that from the wrong choices to the right one."""


@contextmanager
def watched(model: nn.Module, places: Mapping[str, str]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Note, by place, what the modules of `places` receive and output while a model runs within it, with gradients by the
    outputs."""
    received: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def watch(module: nn.Module, place: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            received[place] = given[0].detach()
            outputs[place] = output if output.requires_grad else output.requires_grad_()
            return outputs[place]

        return module.register_forward_hook(keep)

    hooks = [watch(model.get_submodule(module), place) for module, place in places.items()]
    try:
        with torch.enable_grad():
            yield received, outputs
    finally:
        for hook in hooks:
            hook.remove()


def activations(
    reader: QAReader, places: Mapping[str, str], inputs: ReaderInputs, batch: QuestionBatch
) -> dict[str, Activations]:
    """Activations of the modules of `places`, by place: a row a position that is present, in the same order for all readers.

    The gradients are those of the answer as a unit vector, in directions that are the same for all readers too.
    """
    with watched(reader, places) as (received, outputs):
        answered = normalize(inputs.answer(reader, batch), dim=1)
    gradients = [torch.autograd.grad(answered, list(outputs.values()), way, retain_graph=True) for way in _ways(batch)]
    present = batch.present
    return {
        place: Activations(
            received[place][present],
            outputs[place].detach()[present],
            torch.cat([pull[number][present] for pull in gradients]),
        )
        for number, place in enumerate(outputs)
    }


def _ways(batch: QuestionBatch) -> list[Tensor]:
    """Directions of the answers, [n, dim] each: from the wrong choices to the right one, and random ones."""
    wrong = (batch.questions.choices[..., 0] != NOTHING).sum(1, keepdim=True) - 1
    right = batch.right - (batch.offered.sum(1) - batch.right) / wrong
    counters = torch.arange(right.numel(), dtype=torch.int64)
    drawn = [
        counter_rng.normal(counter_rng.key("way", number), counters).view_as(right) for number in range(DIRECTIONS)
    ]
    return [right, *(normalize(way, dim=1) for way in drawn)]
