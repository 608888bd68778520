"""Turns a catalogue into views for devices, and steps on the sum of their gradients (FedVLR).

One vector-Jacobian product a round takes that sum to all parameters of the server.

Within a round nothing the server learns moves on a device, so the views F are constant there and
sum_u alpha_u sum_a grad_(D, gamma) L_u = J_F^T (sum_u alpha_u sum_a dL_u/dF): Algorithm 1's aggregate from dL/dF alone.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from tessera.common.config.federation import ServerSettings
from tessera.common.config.settings import Settings, has_prior
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import DataError, RoundAbandoned, RunError
from tessera.common.privacy.quantile import BELOW, moved
from tessera.common.protocol.codecs import encode, rotation
from tessera.common.protocol.messages import (
    BLOCKS,
    COHESION,
    GROUP_CENTRES,
    GROUP_MAPS,
    GROUP_PEOPLE,
    HISTORY,
    VIEWS,
    Broadcast,
)
from tessera.common.protocol.projection import SKETCH, Directions, expand, leading, start
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update, check_gradients
from tessera.common.registry.losses import LOSSES
from tessera.common.utils.torch_device import resolve_device
from tessera.server.strategies.base import Strategy
from tessera.server.views.facets import numbered
from tessera.server.views.generator import ViewGenerator

log = logging.getLogger("tessera.server")
DIRECTIONS = "wire/directions"
"""Name of the views' directions in the state."""
STEPS = "schedule/steps"
"""Name of the number of steps taken in the run."""
CLIP = "privacy/clip"
SPREAD = "router/cohesion"
"""Name, in the state, of the mean over people of how alike their items are in each view [n_views]."""


class FedVLR(Strategy):
    """The server's half of FedVLR: the view generator and its optimiser."""

    @classmethod
    def make(cls, settings: Settings, catalogue: Catalogue, dataset: Path) -> Self:
        """Build it on the device that the settings name."""
        return cls(settings, catalogue, resolve_device(settings.device), dataset)

    def __init__(
        self, settings: Settings, catalogue: Catalogue, device: torch.device | None = None, dataset: Path | None = None
    ) -> None:
        self.settings, self.catalogue = settings, catalogue.sha256
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.generator = ViewGenerator(
                catalogue, settings.views, settings.local.backbone, dataset, settings.local.groups
            )
        if LOSSES[settings.local.loss.name].views_alone and len(self.views) < 2:
            raise DataError(
                f"local.loss {settings.local.loss.name} holds views against one another, and there is one: use another"
            )
        self.generator.to(device or torch.device("cpu"))
        decay = settings.server.weight_decay
        kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}
        self.optimizer: torch.optim.Optimizer = kinds[settings.server.optimizer](
            _rates(self.generator, settings.server), weight_decay=decay
        )
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._steps = 0
        projected = settings.wire.explained < 1 and len(self.views) > 1
        self._directions = start(len(self.views)) if projected else torch.zeros(0, len(self.views))
        self._has_prior = has_prior(settings.local, settings.privacy, len(self.views))
        self._cohesion = self._centres = torch.zeros(0)
        self._clip = settings.privacy.clip if settings.privacy.clip_quantile else 0.0
        self._small: tuple[int, ...] = ()
        self._outputs: dict[str, Tensor] = {}
        self._broadcast = Broadcast()

    def initialise(self, vectors: Tensor, values: Tensor) -> None:
        """Start the ID embedding and the history view from singular vectors [n_items, rank] and values [rank]."""
        self.generator.initialise(vectors, values, self.settings.views)
        self._moved()

    def item_tables(self) -> Tensors:
        """The history view and the ID embedding, as far as there are any and they learn."""
        return {name: table.detach() for name, table in self.generator.tables.items()}

    def place(self, items: Tensor, tables: Tensors) -> None:
        """Let rows of these begin with others."""
        with torch.no_grad():
            for name, rows in tables.items():
                table = self.generator.tables[name]
                table[items.to(table.device)] = rows.to(table)
        self._moved()

    def features(self) -> Tensor:
        """What the only modality shows of the items, standardised, [n_items, n_features]."""
        return self.generator.only_modality()

    def turn(self, into: Tensor, offset: Tensor) -> None:
        """Start the view and the history view with features @ into + offset."""
        self.generator.turn(into, offset, self.settings.views)
        self._moved()

    @property
    def divided(self) -> bool:
        """Whether people have been divided into groups."""
        return len(self._centres) > 0

    def history(self) -> Tensor:
        """The history view, or the mean of the views."""
        sent = self.build_views()
        return sent[HISTORY].cpu() if HISTORY in sent else sent[VIEWS].mean(0).cpu()

    def divide(self, centres: Tensor) -> None:
        """Send the centres along from now on."""
        self._centres, self._broadcast = centres, Broadcast()

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views, in the order of the broadcast."""
        return self.generator.names

    @property
    def components(self) -> Directions:
        """Those that explained enough of the last sum."""
        return tuple(map(tuple, self._directions.tolist()))

    @property
    def clip(self) -> float:
        """The one that the last sum's bits moved to."""
        return self._clip

    @property
    def counts(self) -> dict[str, torch.Size]:
        """How alike people's items are in each view, where routers are told what that says, and of how many people it is; and
        how many are in each group."""
        groups = self.settings.local.groups.count
        return ({COHESION: torch.Size([2, len(self.views)])} if self._has_prior else {}) | (
            {GROUP_PEOPLE: torch.Size([groups])} if groups else {}
        )

    def build_views(self) -> dict[str, Tensor]:
        """Build what devices receive, before it is written for the wire; the graph behind it waits for `aggregate`."""
        if not self._outputs:
            self._outputs = self.generator()
        return {name: value.detach() for name, value in self._outputs.items()}

    def broadcast(self, client: str | None) -> Broadcast:
        """What any client gets: the broadcast, in the wire's format. Until something moves it is the same object each time."""
        if not self._broadcast.tensors:
            sent = self.build_views()
            written = encode(sent, self.settings.wire.views, rotation(self.settings.seed))
            fixed = {COHESION: self._cohesion} if len(self._cohesion) else {}
            if self.settings.views.facets > 1:
                fixed[BLOCKS] = numbered(self.settings.views.dim, self.settings.views.facets).float()
            if self.divided:
                fixed[GROUP_CENTRES] = self._centres
            self._broadcast = Broadcast(sent, {**written, **fixed})
        return self._broadcast

    def aggregate(self, update: Update) -> None:
        """Step on the devices' sum, normalised by the weight that answered (Alg. 1, lines 8-9).

        Raises `RunError` when a gradient does not fit what was sent, and `RoundAbandoned` when nobody's weight is in it.
        """
        if not self._outputs:
            self._outputs = self.generator()
        if update.weight <= 0:
            raise RoundAbandoned("no user took part, as happens with a small `fraction`")
        found, rest = update.gradients.get(SKETCH), dict(update.gradients)
        said = rest.pop(BELOW, None)
        update = replace(update, gradients=expand(rest, self._directions))
        check_gradients(update, self._outputs)
        gradients = [update.gradients[name].to(sent) / update.weight for name, sent in self._outputs.items()]
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(list(self._outputs.values()), gradients)
        self._schedule()
        with self._small_groups_still(update.counts.get(GROUP_PEOPLE)):
            self.optimizer.step()
        self.generator.stepped()
        if found is not None and found.any():
            self._directions = leading(found, self.settings.wire.explained)
        if self._has_prior and (alike := update.counts.get(COHESION)) is not None and alike[1].any():
            self._cohesion = alike[0] / alike[1].clamp(min=1)
        if self._clip and said is not None:
            self._move_clip(float(said), update.weight)
        self._moved()

    def _move_clip(self, said: float, people: float) -> None:
        """Take the clip nearer to the quantile that is wanted."""
        before = self._clip
        self._clip, share = moved(self.settings.privacy.model_copy(update={"clip": before}), said, people)
        log.info("clip %.3g: above it about %.0f%% of people; next %.3g", before, 100 * (1 - share), self._clip)

    @contextmanager
    def _small_groups_still(self, people: Tensor | None) -> Iterator[None]:
        """Leave the maps of groups as they were that had too few people in the sum: theirs would be a gradient of a few."""
        groups, head = self.settings.local.groups, self.generator.head
        before = {name: maps.detach().clone() for name, maps in head.items() if name == GROUP_MAPS}
        yield
        for name, maps in before.items():
            people = torch.zeros(groups.count) if people is None else people
            small = people < groups.smallest
            self._tell_small(people, small)
            rows = small.to(maps.device).repeat_interleave(len(maps) // groups.count)
            with torch.no_grad():
                head[name][rows] = maps[rows]

    def _tell_small(self, people: Tensor, small: Tensor) -> None:
        """Say in the log which groups learn nothing, where these are others than before: groups may collapse."""
        found = tuple(small.nonzero()[:, 0].tolist()) if self.divided else ()
        if found and found != self._small:
            told = ", ".join(f"{group} ({people[group]:.0f})" for group in found)
            log.warning("too few people in groups %s of %d: their maps stay as they are", told, len(small))
        self._small = found

    def _schedule(self) -> None:
        """Set the rates of the coming step, where they fall."""
        if self.settings.server.schedule == "linear":
            left = max(0.0, 1 - self._steps / self.settings.rounds)
            for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
                group["lr"] = rate * left
        self._steps += 1

    def state(self) -> dict[str, Tensor]:
        """Everything learnt so far, by name: parameters, the optimiser's moments, and if there are any the number of steps that
        rates fall by, the directions of gradients, and how alike people's items are in each view."""
        tensors = {f"model/{name}": value for name, value in self.generator.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items() if value is not None}
        if self.settings.server.schedule == "linear":
            tensors[STEPS] = torch.tensor(self._steps)
        if self._clip:
            tensors[CLIP] = torch.tensor(self._clip, dtype=torch.float64)
        others = {DIRECTIONS: self._directions, SPREAD: self._cohesion, GROUP_CENTRES: self._centres}
        return tensors | {name: value for name, value in others.items() if len(value)}

    def restore(self, tensors: Tensors) -> None:
        """Take up what `state` gave."""
        model = {name.removeprefix("model/"): value for name, value in tensors.items() if name.startswith("model/")}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer/"):
                _, index, moment = name.split("/")
                moments.setdefault(int(index), {})[moment] = value
        self._directions = tensors.get(DIRECTIONS, self._directions)
        self._steps = int(tensors.get(STEPS, self._steps))
        self._clip = float(tensors.get(CLIP, self._clip)) if self._clip else 0.0
        self._cohesion = tensors.get(SPREAD, self._cohesion) if self._has_prior else self._cohesion
        self._centres = tensors.get(GROUP_CENTRES, self._centres)
        self.generator.load_state_dict(model)
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self._moved()

    def grow(self, tensors: Tensors, n_items: int) -> None:
        """The same for the first `n_items` items; the others start from what their contents predict, with no moments."""
        fresh = self.state()
        rows = {f"model/{name}" for name in self.generator.by_item}
        rows |= {
            f"optimizer/{at}/"
            for at, (name, _) in enumerate(self.generator.named_parameters())
            if f"model/{name}" in rows
        }
        grown = {
            name: _longer(value, fresh.get(name), len(self.generator.embedding)) if _of(name, rows) else value
            for name, value in tensors.items()
            if self._wants(name)
        }
        for name in fresh.keys() | grown.keys():
            if name.startswith("model/") and (
                name not in grown or name not in fresh or grown[name].shape != fresh[name].shape
            ):
                raise RunError(
                    f"{name.removeprefix('model/')} is not as in the run that is to be continued: begin anew"
                )
        self.restore(grown)
        self.generator.place_new(n_items, self.settings.views)
        self._moved()

    def _wants(self, name: str) -> bool:
        """Whether a tensor of another run has a use here: its optimiser or its short messages may have been others."""
        if name.startswith("optimizer/"):
            return self.settings.server.optimizer == "adam"
        if name == CLIP:
            return self._clip > 0
        if name == STEPS:  # rates fall anew in each run
            return False
        return name != DIRECTIONS or len(self._directions) > 0

    def _moved(self) -> None:
        """Forget what was built from what has changed."""
        self._outputs, self._broadcast = {}, Broadcast()


def _of(name: str, rows: set[str]) -> bool:
    """Whether a tensor has a row for each item."""
    return name in rows or any(name.startswith(one) for one in rows if one.endswith("/"))


def _longer(value: Tensor, fresh: Tensor | None, n_items: int) -> Tensor:
    """A tensor with rows for more items: as they are in a `fresh` one or, of moments, zero. A count of steps stays."""
    if not value.ndim:
        return value
    more = value.new_zeros(n_items - len(value), *value.shape[1:]) if fresh is None else fresh[len(value) :].to(value)
    return torch.cat([value, more])


def _rates(generator: ViewGenerator, settings: ServerSettings) -> list[dict[str, Any]]:
    """Each parameter with its learning rate, as torch's optimisers take them."""
    widths = {module.weight: module.in_features for module in generator.modules() if isinstance(module, nn.Linear)}
    head = set(generator.head.values())
    widths |= {parameter: parameter.shape[-1] for parameter in head if parameter.ndim > 1}
    divisors = widths if settings.by_fan_in else {}
    groups = []
    for parameter in generator.parameters():
        rate = (settings.head_learning_rate or settings.learning_rate) if parameter in head else settings.learning_rate
        group = {"params": [parameter], "lr": rate / divisors.get(parameter, 1)}
        groups.append(group | ({"weight_decay": 0.0} if parameter in head else {}))  # decay is for tables of items
    return groups
