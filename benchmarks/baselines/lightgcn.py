"""LightGCN: embeddings of users and items, averaged over their hops in the graph of interactions.

He et al., LightGCN: simplifying and powering graph convolution network for recommendation, SIGIR 2020, Eq. 3-5 and 15:
E = mean_(l = 0..L) (D^-1/2 A D^-1/2)^l E_0, score = e_u . e_i, trained by BPR with a penalty on the rows of E_0 of a batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.graphs import Graph, histories_graph, light_gcn
from tessera.benchmarks.baselines.training import Model, TrainedBaseline, bpr, half_squares, table
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue


class LightGCNModel(Model):
    """Two tables and a graph."""

    def __init__(self, graph: Graph, n_users: int, n_items: int, settings: "LightGCN") -> None:
        super().__init__()
        self.graph, self.settings = graph, settings
        self.users, self.items = table(n_users, settings.dim), table(n_items, settings.dim)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Propagated embeddings of users and items."""
        nodes = light_gcn(self.graph, torch.cat([self.users, self.items]), self.settings.layers)
        users, items = nodes.split([len(self.users), len(self.items)])
        return users, items

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR and the squares of the rows that the batch touched."""
        people, items = self()
        touched = (self.users[users], self.items[positives], self.items[negatives])
        return bpr(people[users], items[positives], items[negatives]) + self.settings.penalty * half_squares(*touched)


@dataclass
class LightGCN(TrainedBaseline):
    """LightGCN with `layers` hops, as published."""

    GRID: ClassVar[Grid] = {"learning_rate": (1e-3, 5e-3), "penalty": (1e-4, 1e-2)}

    layers: int = 3

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start."""
        return LightGCNModel(histories_graph(people), len(people), people.n_items, self)
