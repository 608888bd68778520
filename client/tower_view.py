"""Makes a device's adapted tower one more view of the items, which its people's routers weigh beside the server's.

Nobody else ever has this view. Training a cohort gives dL/dF for all views alike; the part of this one stays here, and one
vector-Jacobian product a round takes it to the adapter, as the server's takes the rest to what makes its views. What leaves
is the branch that the method shares, and a signature. Where people's gradients are clipped and noised, so is this part of
them: adapter and signature are computed from what is noised.

private/RUN/tower/      the adapter after each round, its optimiser's moments, and the signature so far
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tessera.client import optimizers
from tessera.client.adapters.adapted_tower import SIGNER, TOWER, AdaptedTower
from tessera.client.adapters.attach import activate
from tessera.client.adapters.pq_lora import LOCAL, is_plain
from tessera.client.adapters.signature import last_layer_gradient, sign
from tessera.client.base import Client
from tessera.client.methods import make_method
from tessera.common.config.settings import LocalSettings, MosaicSettings
from tessera.common.data.catalogue import image_and_text, load_catalogue
from tessera.common.data.questions import PICTURE, TEXT
from tessera.common.errors import DataError
from tessera.common.protocol.adapters import ADAPTERS, MODULE, ClientAdapters
from tessera.common.protocol.messages import VIEWS, Task
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.towers.aligned_init import last_layer
from tessera.common.towers.io import load_reader
from tessera.common.towers.qa_reader import QAReader, instructions
from tessera.common.utils.torch_device import resolve_device

INSTRUCTION = "describe the picture and the text"
"""Words that readers know from their fit, whose task of that kind is to say what is shown, as a vector."""
OWNER = "device"
"""The adapter is of no single person."""
SHOWN_AT_ONCE = 1024
CACHED = 16


@dataclass(frozen=True)
class ItemPrompts:
    """What a reader is asked to describe: all items, as it sees them.

    `read` [1, READ] are the words of the instruction, `pieces` [n_items, 2, 2] the picture and the text of each item, where
    it has them, and `item_embeddings` [3, n_items, width] how this reader sees them.
    """

    read: Tensor
    pieces: Tensor
    item_embeddings: Tensor

    def answers(self, reader: nn.Module, rows: Tensor) -> Tensor:
        """What `reader` says of the items `rows` [n], [n, dim]."""
        answered: Tensor = reader(self.read.expand(len(rows), -1), self.pieces[rows], self.item_embeddings)
        return answered

    def parts(self) -> tuple[Tensor, ...]:
        """Rows of all items, as many at once as fit into a device's memory."""
        return torch.split(torch.arange(len(self.pieces), device=self.pieces.device), SHOWN_AT_ONCE)

    @torch.no_grad()
    def all_answers(self, reader: nn.Module) -> Tensor:
        """What `reader` says of all items, [n_items, dim]."""
        return torch.cat([self.answers(reader, rows) for rows in self.parts()])

    def pull(self, reader: nn.Module, by_answer: Tensor) -> None:
        """Add the gradient of <`by_answer` [n_items, dim], answers> to what is trained of `reader`."""
        for rows in self.parts():
            torch.autograd.backward(self.answers(reader, rows), by_answer[rows])


def sized(answers: Tensor, size: Tensor) -> Tensor:
    """Answers [n_items, dim] as a view: their directions, less what all have in common, in the size of the server's views.

    Readers answer by direction only. The size is no part of the gradient.
    """
    units = normalize(answers, dim=1)
    apart = units - units.mean(0)
    return apart * (size / typical_size(apart.detach()))


def typical_size(views: Tensor) -> Tensor:
    """Root mean square by which items stand apart in `views` [..., n_items, dim]."""
    return (views - views.mean(-2, keepdim=True)).square().mean().sqrt()


@dataclass(frozen=True)
class TowerContext:
    """What a device needs in every round, read and made once: its adapted tower, what it is asked, and the last `layer` of the
    small frozen tower that signs, with what it is given of each item, `given` [n_items, width]."""

    adapted: AdaptedTower
    prompts: ItemPrompts
    layer: nn.Module
    given: Tensor


@dataclass
class TowerView:
    """The own view of the device `node` for one `task`."""

    name = "tower"
    node: Client
    task: Task
    context: TowerContext
    _kept: Mapping[str, Tensor] = field(default_factory=dict)
    _answers: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, node: Client, task: Task) -> "TowerView":
        """Find the tower in a device's folder. Raises `DataError` when it was given none."""
        settings = task.settings
        return cls(node, task, _equip(node.folder, settings.mosaic, settings.seed, resolve_device(settings.device)))

    def signed(self, update: Update) -> Update:
        """The update with this device's name in the run and the id of its tower, which every reply says."""
        own_name = ClientAdapters(towers={self.node.client(self.task.run): self.context.adapted.tower_id})
        return update.put(ADAPTERS, update[ADAPTERS] + own_name)

    def beside(self, sent: Tensors) -> dict[str, Tensor]:
        """What this device's people see: the server's views [n_views, n_items, dim] and, as the last one, the own view.

        The adapter is as its last round left it, with what the server merged for it.
        """
        model, method = self.context.adapted.model, make_method(self.task.settings.mosaic.method)
        self._kept = self.context.adapted.take_up(self._folder, self.task.round + (self.task.kind != "train"), OWNER)
        activate(model, method.answers_with, [LOCAL])
        modules = {name.removeprefix(MODULE): value for name, value in sent.items() if name.startswith(MODULE)}
        progress = self.task.round / self.task.settings.rounds
        into = method.begins_with(progress) if self.task.kind == "train" else (method.receives,)
        for branch in into if modules else ():
            self.context.adapted.receive(modules, branch)
        rest = {name: value for name, value in sent.items() if not name.startswith(MODULE)}
        self._answers = self.context.prompts.all_answers(model.get_base_model())
        own = sized(self._answers, typical_size(rest[VIEWS]))
        return {**rest, VIEWS: torch.cat([rest[VIEWS], own[None].to(rest[VIEWS])])}

    def learn(self, update: Update, seen: Tensors) -> Update:
        """Step on what the people's sum says of the own view, keep the adapter, and return what leaves the device.

        `seen` is what `beside` gave. Where nobody took part, nothing changes and nothing leaves.
        """
        if not update.weight:
            return update
        mosaic, client, by_view = self.task.settings.mosaic, self.node.client(self.task.run), update.gradients[VIEWS]
        size, mean = typical_size(seen[VIEWS][:-1]), by_view[-1] / update.weight
        signature, more = torch.zeros(0), dict[str, Tensor]()
        if mosaic.method_spec.shares == "relevant":
            signature, more = self._sign(mean, size)
        answers = self._answers.requires_grad_()
        (by_answer,) = torch.autograd.grad(sized(answers, size), answers, mean)
        self.context.prompts.pull(self.context.adapted.model.get_base_model(), by_answer)
        self.context.adapted.keep(self._folder, self.task, OWNER, more | self._step())
        branch = make_method(mosaic.method).uploads
        learnt = {client: self.context.adapted.adapter_update(branch, signature)} if branch else {}
        update = replace(update, gradients={**update.gradients, VIEWS: by_view[:-1]})
        return update.put(ADAPTERS, ClientAdapters(modules=learnt))

    @property
    def _folder(self) -> Path:
        return self.node.private(self.task.run) / TOWER

    def _step(self) -> dict[str, Tensor]:
        """One step of Adam on the gradients that lie with the adapter's parameters; return the moments."""
        model, mosaic = self.context.adapted.model, self.task.settings.mosaic
        moved = {name: one for name, one in model.named_parameters() if one.requires_grad and one.grad is not None}
        values = {name: one.detach()[None] for name, one in moved.items()}
        gradients = {name: one.grad[None] for name, one in moved.items() if one.grad is not None}
        settings = LocalSettings(optimizer="adam")
        moments = optimizers.start(settings, values)
        moments |= {name: value.to(moments[name]) for name, value in self._kept.items() if name in moments}
        plain = {name for name in moved if is_plain(name)}
        pq_rate = mosaic.pq.pq_learning_rate if mosaic.pq else mosaic.learning_rate
        share = mosaic.rates(self.task.round, self.task.settings.rounds)
        for names, rate in ((plain, mosaic.learning_rate), (moved.keys() - plain, pq_rate)):
            at_rate = settings.model_copy(update={"learning_rate": share * rate})
            values, moments = optimizers.step(at_rate, values, gradients, moments, sorted(names))
        with torch.no_grad():
            for name, one in moved.items():
                one.copy_(values[name][0])
        model.zero_grad()
        return moments

    def _sign(self, gradient: Tensor, size: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The signature that leaves, and what of it is kept: the same gradient, had it met the small tower's view."""
        layer = self.context.layer
        loss = (gradient * sized(layer(self.context.given), size)).sum()
        asked, seed = last_layer_gradient(loss, list(layer.parameters())), self.task.settings.seed
        settings, noise_key = self.task.settings.mosaic.signature, self.node.noise_key(self.task.run)
        return sign(settings, self._kept, asked[None], seed, noise_key, self.task.round)


@lru_cache(maxsize=CACHED)
def _equip(folder: Path, mosaic: MosaicSettings, seed: int, device: torch.device) -> TowerContext:
    """Read and make all that does not change over a run, once for each process."""
    catalogue = load_catalogue(folder)
    try:
        image, text = (part.to(device) for part in image_and_text(catalogue))
    except DataError as error:
        raise DataError(f"{folder}: {error}; give the device a tower together with its features") from None
    parts = [catalogue.features[name] for name in ("image", "text")]
    adapted = AdaptedTower.make(folder, mosaic, seed, image, text)
    kinds = [torch.from_numpy(part.present) * kind for part, kind in zip(parts, (PICTURE, TEXT), strict=True)]
    items = torch.arange(len(image)).expand(2, -1).T
    pieces = torch.stack([torch.stack(kinds, 1), items], -1).to(device)
    prompts = ItemPrompts(instructions([INSTRUCTION]).to(device), pieces, adapted.item_embeddings)
    return TowerContext(
        adapted, prompts, *_signer(load_reader(folder / TOWER / SIGNER).to(device), prompts, image, text)
    )


@torch.no_grad()
def _signer(reader: QAReader, prompts: ItemPrompts, image: Tensor, text: Tensor) -> tuple[nn.Module, Tensor]:
    """The last layer of the tower that signs, and what it is given of each item, [n_items, width]."""
    given: list[Tensor] = []
    layer = last_layer(reader).requires_grad_()
    hook = layer.register_forward_hook(lambda _, inputs, __: given.append(inputs[0]))
    replace(prompts, item_embeddings=reader.embed_items(image, text)).all_answers(reader)
    hook.remove()
    return layer, torch.cat(given)
