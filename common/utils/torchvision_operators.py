"""Lets torchvision be imported beside a torch for which its compiled operators were not built.

PEFT and open_clip both import torchvision, whose wheel for CUDA does not load beside a torch for processors only; then its
import fails over the two operators it describes. Nothing here calls them, so it is enough that their names are known.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

OPERATORS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@cache
def define_missing_operators() -> torch.library.Library | None:
    """Define the signatures of torchvision's operators where its compiled ones cannot be loaded.

    To be called before anything imports torchvision. Returns what keeps the definitions alive; None where nothing is missing.
    """
    found = find_spec("torchvision")
    if found is None or not found.submodule_search_locations:
        return None
    for compiled in Path(found.submodule_search_locations[0]).glob("_C*.so"):
        try:
            torch.ops.load_library(str(compiled))  # type: ignore[no-untyped-call]
            return None
        except OSError:
            pass
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name, signature in OPERATORS.items():
        library.define(name + signature)  # type: ignore[no-untyped-call]
    return library
