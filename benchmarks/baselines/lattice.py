"""LATTICE: items also learn from items of similar content, over graphs that are learnt with them.

Zhang et al., Mining latent structures for multimedia recommendation, MM 2021, Eq. 1-12:
  graphs     S_m of each modality from its features (10 neighbours, cosines, D^-1/2 S D^-1/2), and S'_m alike from the features
             after a linear map; A = sum_m a_m (kept S_m + (1 - kept) S'_m), a = softmax of one number a modality
  items      e_i = LightGCN's embedding + h_i / |h_i|, h = A E_0 (one hop over the items' own embeddings)
  users      LightGCN's embedding; score = e_u . e_i; BPR with a penalty on the rows of E_0 of a batch
Simplified: which neighbours S'_m joins is chosen once an epoch, as the authors do, while its weights learn in every batch
(theirs in an epoch's first); features stay fixed (the authors fine-tune their tables).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.graphs import histories_graph, item_graph, light_gcn, nearest, normalised
from tessera.benchmarks.baselines.training import Model, TrainedBaseline, bpr, content, half_squares, table
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue


class LatticeModel(Model):
    """LightGCN beside a mean over graphs of items."""

    def __init__(self, people: Histories, catalogue: Catalogue, settings: "Lattice") -> None:
        super().__init__()
        self.interactions, self.settings = histories_graph(people), settings
        self.features, self.contents = list(content(catalogue).values()), list(catalogue.features.values())
        self.fixed = [item_graph(modality, settings.neighbours, weighted=True) for modality in self.contents]
        self.users, self.items = table(len(people), settings.dim), table(people.n_items, settings.dim)
        self.maps = nn.ModuleList(nn.Linear(values.shape[1], settings.dim) for values in self.features)
        self.weights = nn.Parameter(torch.zeros(len(self.features)))
        self.edges: list[tuple[Tensor, Tensor]] = []

    def begin_epoch(self) -> None:
        """Choose the neighbours of the learnt graphs."""
        with torch.no_grad():
            self.edges = [
                nearest(mapped(values), modality, self.settings.neighbours)[:2]
                for mapped, values, modality in zip(self.maps, self.features, self.contents, strict=True)
            ]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Embeddings of users and items."""
        nodes = light_gcn(self.interactions, torch.cat([self.users, self.items]), self.settings.layers)
        users, items = nodes.split([len(self.users), len(self.items)])
        return users, items + normalize(self._hop(), dim=1)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR and the squares of the rows that the batch touched."""
        people, items = self()
        touched = (self.users[users], self.items[positives], self.items[negatives])
        return bpr(people[users], items[positives], items[negatives]) + self.settings.penalty * half_squares(*touched)

    def _hop(self) -> Tensor:
        """h = A E_0, [n_items, dim]."""
        if not self.training:
            self.begin_epoch()
        total, shares = torch.zeros_like(self.items), torch.softmax(self.weights, 0)
        for number, (graph, (rows, columns)) in enumerate(zip(self.fixed, self.edges, strict=True)):
            mapped = normalize(self.maps[number](self.features[number]), dim=1)
            values = (mapped[rows] * mapped[columns]).sum(1).clamp(min=0)
            values = normalised(rows, columns, values, len(total))
            learnt = torch.zeros_like(total).index_add(0, rows, values[:, None] * self.items[columns])
            kept = self.settings.kept
            total = total + shares[number] * (kept * (graph @ self.items) + (1 - kept) * learnt)
        return total


@dataclass
class Lattice(TrainedBaseline):
    """LATTICE with `layers` hops over the interactions and one over the item graphs, as published."""

    GRID: ClassVar[Grid] = {"learning_rate": (1e-3, 5e-3), "kept": (0.5, 0.9)}

    layers: int = 2
    neighbours: int = 10
    kept: float = 0.9
    """Share of the fixed graphs beside the learnt ones."""

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start."""
        return LatticeModel(people, catalogue, self)
