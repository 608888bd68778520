"""Keeps what the layers of an encoder hold of each item, beside the features that are its last word.

hidden/NAME.safetensors     one file a modality: "hidden" [n_items, n_states, width] float16, "present" [n_items]
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_tensors, write_tensors

HIDDEN = "hidden"


@dataclass(frozen=True)
class HiddenStates:
    """One modality's states, pooled over an item's tokens or patches: `values` [n_items, n_states, width], of which a row
    is meaningful where `present` [n_items] is true. The embedding comes first, the last layer last."""

    values: Tensor
    present: Tensor
    encoder: str

    def save(self, folder: Path, modality: str) -> None:
        """Write them below a dataset's folder. Raises `StorageError`."""
        tensors = {"hidden": self.values.half(), "present": self.present}
        write_tensors(folder / HIDDEN / f"{modality}.safetensors", tensors, {"encoder": self.encoder})


def load_hidden(folder: Path, modality: str, n_items: int) -> HiddenStates | None:
    """Read a modality's states; None where there are none. Raises `DataError` for those of other items."""
    path = folder / HIDDEN / f"{modality}.safetensors"
    if not path.is_file():
        return None
    tensors, metadata = read_tensors(path)
    if {"hidden", "present"} - tensors.keys() or tensors["hidden"].ndim != 3:
        raise DataError(f"{path} lacks the tensors 'hidden' [n_items, n_states, width] and 'present'")
    if not len(tensors["hidden"]) == len(tensors["present"]) == n_items:
        raise DataError(f"{path} has {len(tensors['hidden'])} rows for {n_items} items: encode again, with --hidden")
    return HiddenStates(tensors["hidden"].float(), tensors["present"].bool(), metadata.get("encoder", "unknown"))


def standardised(hidden: HiddenStates) -> Tensor:
    """The states centred and divided by one scale for each layer, [n_items, n_states, width]; missing rows are zero."""
    rows = hidden.values[hidden.present]
    if not len(rows):
        raise DataError(f"no item has states by {hidden.encoder}")
    mean = rows.mean(0)
    centred = torch.where(hidden.present[:, None, None], hidden.values - mean, torch.zeros(()))
    scale = (rows - mean).square().mean((0, 2), keepdim=True).sqrt()
    return centred / scale.clamp(min=torch.finfo(torch.float32).tiny)
