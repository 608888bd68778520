"""A device's tower with its adapter: made once, then given the private state of whichever round is asked for.

tower/class.json                this device's class
tower/reader.safetensors        the frozen tower, or tower/model/ somebody's model; tower/start-*.safetensors aligned matrices
tower/signer.safetensors        the frozen small tower that signs, or tower/signer/model/
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from tessera.client.adapters.attach import PLAIN, attach, branch_tensors, gates, receive, set_projections
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL
from tessera.client.private_state import PrivateState, Store
from tessera.common.config.settings import MosaicSettings
from tessera.common.data.questions import N_PIECES
from tessera.common.errors import DataError
from tessera.common.protocol.adapters import AdapterUpdate
from tessera.common.protocol.messages import Task
from tessera.common.registry.methods import Shared
from tessera.common.towers.aligned_init import aligned_init_path, load_aligned_init, n_blocks, stacks_of, tower_id
from tessera.common.towers.io import load_reader
from tessera.common.towers.models.load import READER
from tessera.common.towers.qa_reader import READ
from tessera.common.utils.atomic_files import read_json

TOWER = "tower"
SIGNER = "signer.safetensors"
CLASS = "class.json"
BLOCK = 0
"""An adapter is stored as the private state of one block: the device's own."""


@dataclass(frozen=True)
class AdaptedTower:
    """An adapted reader, the `item_embeddings` [3, n_items, width] of its items, and the private tensors it `begins` with.

    `share` says which part of a branch is sent and comes back.
    """

    model: PeftModel
    item_embeddings: Tensor
    tower_id: str
    begins: Mapping[str, Tensor]
    share: Shared

    @classmethod
    def make(cls, folder: Path, mosaic: MosaicSettings, seed: int, image: Tensor, text: Tensor) -> "AdaptedTower":
        """Adapt the reader in a device's folder for items with standardised features [n_items, d]. Raises `DataError`."""
        reader = load_reader(folder / TOWER / READER).to(image.device)
        with torch.no_grad():
            item_embeddings = reader.embed_items(image, text)
        return cls.adapt(reader, partial(probe, item_embeddings=item_embeddings), folder, mosaic, seed, item_embeddings)

    @classmethod
    def adapt(
        cls,
        bare: nn.Module,
        ask: Callable[[nn.Module], Tensor],
        folder: Path,
        mosaic: MosaicSettings,
        seed: int,
        item_embeddings: Tensor,
    ) -> "AdaptedTower":
        """Adapt a `bare` tower, with the start in the device's folder; `ask` runs it on an example. Raises `DataError`."""
        tower = folder / TOWER
        start = load_aligned_init(aligned_init_path(tower, mosaic)) if n_blocks(mosaic) else None
        form = mosaic.pq or PLAIN
        model = attach(bare, stacks_of(bare), mosaic.rank, ask, n_blocks(mosaic), seed, form, start)
        if start is not None:
            set_projections(model, start)
        named = tower_id(tower, str(read_json(tower / CLASS)["class"]), mosaic)
        begins = {name: value.clone() for name, value in private_tensors(model).items()}
        return cls(model, item_embeddings, named, begins, mosaic.share)

    def take_up(self, private: Path, before: int, owner: str) -> Mapping[str, Tensor]:
        """Put in the state that the newest round below `before` left, or the start; return what else was kept with it.

        Raises `DataError` when it is of another device, tower or rank.
        """
        kept = Store(private).load(BLOCK, before)
        if kept is not None and kept.users != (owner,):
            raise DataError(f"{private}: the adapter kept there is another device's; start a new run")
        own = private_tensors(self.model)
        tensors = {name: value[0] for name, value in kept.parameters.items()} if kept else dict(self.begins)
        if any(name not in tensors or tensors[name].shape != value.shape for name, value in own.items()):
            raise DataError(f"{private}: the adapter kept there is of another tower or rank; start a new run")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])
        return {name: value.to(self.item_embeddings.device) for name, value in tensors.items() if name not in own}

    def restart(self) -> None:
        """Put in the start."""
        for name, value in private_tensors(self.model).items():
            value.copy_(self.begins[name])

    def keep(self, private: Path, task: Task, owner: str, more: Mapping[str, Tensor]) -> None:
        """Write the private state that the task's round leaves, with `more` that belongs to it."""
        tensors = {**private_tensors(self.model), **more}
        state = PrivateState((owner,), {name: value.detach()[None].clone() for name, value in tensors.items()}, {})
        store = Store(private)
        store.save(BLOCK, task.round, state)
        store.tidy(task.round, task.durable)

    def receive(self, sent: Mapping[str, Tensor], branch: str) -> None:
        """Put what was merged into a branch. Raises `DataError` where it does not fit."""
        receive(self.model, sent, branch, self.share)

    def adapter_update(self, branch: str, signature: Tensor) -> AdapterUpdate:
        """What is sent of a branch. The gate is no part of it."""
        pq, lora = (_copied(part) for part in branch_tensors(self.model, branch, self.share))
        return AdapterUpdate(self.tower_id, pq, lora, signature)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def private_tensors(model: PeftModel) -> dict[str, Tensor]:
    """All that training moves: both branches and the gates, by name. The tensors are the model's own."""
    found = dict(gates(model))
    for branch in (LOCAL, GLOBAL):
        for part in branch_tensors(model, branch):
            found |= {f"{branch}/{name}": value for name, value in part.items()}
    return found


def probe(model: torch.nn.Module, item_embeddings: Tensor) -> Tensor:
    """The reader's answers to a few made-up questions that touch all of it."""
    device, n_items = item_embeddings.device, item_embeddings.shape[1]
    words = torch.arange(1, 1 + 2 * READ, device=device).view(2, READ)
    kinds = torch.tensor([[1, 2, 1, 2, 1], [2, 1, 2, 1, 2]], device=device)[:, :N_PIECES]
    items = torch.arange(2 * N_PIECES, device=device).view(2, N_PIECES) % n_items
    answered: Tensor = model(words, torch.stack([kinds, items], -1), item_embeddings)
    return answered
