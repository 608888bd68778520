"""SASRec and GRU4Rec: networks that read a person's last events in their order and ask for the next one.

Kang & McAuley, Self-attentive sequential recommendation, ICDM 2018; Hidasi et al., Session-based recommendations with recurrent
neural networks, ICLR 2016. Items have one embedding, for what is read and what is scored; an epoch asks for every event of a
person's last ones. The networks are those of the federation (client/backbones), here from a random start and with nothing of
History's. Changed: cross-entropy over the whole catalogue in place of the published losses over sampled items, which it is
known to pass (Klenitskiy & Vasilev, RecSys 2023). RecBole and RecTools have both, and would pin another Ray and bring a dozen
packages along.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.training import Model, TrainedBaseline, table
from tessera.client.backbones.sequences import Windows, after, gated_recurrence, self_attention
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue
from tessera.common.registry.component import SharedTensors
from tessera.common.registry.sequences import GRU4RecSettings, SASRecSettings, gru4rec_tensors, sasrec_tensors


class SequenceModel(Model):
    """A table of items and a network that reads rows of it."""

    def __init__(self, people: Histories, network: SharedTensors, settings: "SequenceBaseline") -> None:
        super().__init__()
        self.people, self.settings = people, settings
        self.items = table(people.n_items, settings.dim)
        self.network = nn.ParameterDict(
            {name: _started(one.shape, one.start) for name, one in network.items() if "_read" not in name}
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        """The training people's states and the items."""
        return self.known(self.people), self.items

    def known(self, people: Histories) -> Tensor:
        """The states after people's last events, [n_users, dim]."""
        windows = Windows.of(people, self.settings.length)
        return after(self._states(windows.items), windows.ends)[:, 0]

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Cross-entropy of all events of these users' windows but the first; the pairs are not used."""
        windows = Windows.of(self.people, self.settings.length + 1)
        items, ends = windows.items[users], windows.ends[users]
        asked = torch.arange(items.shape[1] - 1) < ends - 1
        return cross_entropy(self._states(items[:, :-1])[asked] @ self.items.T, items[:, 1:][asked])

    def _states(self, items: Tensor) -> Tensor:
        return self.settings.states(dict(self.network), self.items[items], self.training)


@dataclass
class SequenceBaseline(TrainedBaseline):
    """A model that reads the last `length` events."""

    GRID: ClassVar[Grid] = {"learning_rate": (1e-3, 3e-3), "dropout": (0.2, 0.5)}

    length: int = 50
    dropout: float = 0.2
    batch: int = 64
    """People in a batch."""

    @abstractmethod
    def states(self, network: dict[str, Tensor], events: Tensor, training: bool) -> Tensor:
        """The network's states after each event, [n_users, length, dim] as `events` are."""

    def scores(self, known: Histories) -> Tensor:
        """Inner products of the states after what is known now and the items, [n_users, n_items]: of anybody."""
        return self._scored(self._model, known)

    def _scored(self, model: Model, known: Histories) -> Tensor:
        assert isinstance(model, SequenceModel)
        model.eval()
        with torch.no_grad():
            return model.known(known) @ model.items.T

    def _losses(self, model: Model, people: Histories, salt: int) -> Iterator[Tensor]:
        for users in torch.randperm(len(people)).split(self.batch):
            yield model.loss(users, users, users)


@dataclass
class SASRec(SequenceBaseline):
    """SASRec with two blocks and two heads."""

    blocks: int = 2
    heads: int = 2

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start."""
        settings = SASRecSettings(name="sasrec", length=self.length, blocks=self.blocks, heads=self.heads)
        return SequenceModel(people, sasrec_tensors(self.dim, settings), self)

    def states(self, network: dict[str, Tensor], events: Tensor, training: bool) -> Tensor:
        """Attend to the events so far, each at its place."""
        inputs = self.dim**0.5 * events + network["sasrec_places"][: events.shape[1]]
        kept = events.new_ones(len(events), 1 + 2 * self.blocks, *events.shape[1:])
        kept = dropout(kept, self.dropout, training)
        return self_attention(network, "sasrec", inputs, self.blocks, self.heads, kept)


@dataclass
class GRU4Rec(SequenceBaseline):
    """GRU4Rec with one layer."""

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start."""
        settings = GRU4RecSettings(name="gru4rec", length=self.length)
        return SequenceModel(people, gru4rec_tensors(self.dim, settings), self)

    def states(self, network: dict[str, Tensor], events: Tensor, training: bool) -> Tensor:
        """Go from event to event."""
        inputs = dropout(self.dim**0.5 * events, self.dropout, training)
        return dropout(gated_recurrence(network, "gru4rec", inputs), self.dropout, training)


def _started(shape: tuple[int, ...], start: str) -> nn.Parameter:
    """As the federation's server starts a shared tensor."""
    if start == "uniform":
        return nn.Parameter(torch.empty(shape).uniform_(-(shape[-1] ** -0.5), shape[-1] ** -0.5))
    return nn.Parameter(torch.full(shape, float(start == "ones")))
