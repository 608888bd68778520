"""What the layers that carry P and Q get and give while a reader answers public questions."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from common.questions import NOTHING
from common.towers.reader import Reader
from server.alignment import Activations
from server.distillation import Eyes, Lesson


def activations(reader: Reader, places: Mapping[str, str], eyes: Eyes, lesson: Lesson) -> dict[str, Activations]:
    """What the modules of `places` see, by place: a row a position that is present, in the same order for all readers."""
    seen: dict[str, Activations] = {}
    present = lesson.questions.pieces[..., 0] != NOTHING
    present = torch.cat([torch.ones_like(present[:, :1]), present], dim=1)

    def watch(module: nn.Module, place: str) -> torch.utils.hooks.RemovableHandle:
        def keep(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
            seen[place] = Activations(given[0][present], output[present])

        return module.register_forward_hook(keep)

    hooks = [watch(reader.get_submodule(module), place) for module, place in places.items()]
    try:
        with torch.no_grad():
            eyes.answer(reader, lesson)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
