"""MGCN: multi-view graph convolution over interactions and item contents.

Content is purified by behaviour, propagated in views of its own, and fused by what the behaviour says of preferences.

Yu et al., Multi-view graph convolutional network for multimedia recommendation, MM 2023. With E_id the LightGCN embeddings:
  purifier   e_m = e_id * sigmoid(W_2m (W_1m f_m + b_1m) + b_2m), e_id the item's own embedding
  views      items E_m = S_m e_m over the frozen item graph of m (10 neighbours, cosine weights); users E_m = R~ E_m
  fuser      a = softmax_m(q^T tanh(W_4 E_m + b_4)), E_s = sum_m a_m E_m, E~_m = E_m - E_s, P_m = sigmoid(W_3m E_id + b_3m),
             E_mul = E_s + mean_m(P_m * E~_m);  final E = E_id + E_mul, score = E_u . E_i
  loss       BPR + contrast (InfoNCE_users + InfoNCE_items)(E_mul, E_id; 0.2) + penalty |E|^2
Written from the equations as remembered and compared with the authors' released model, which differs from them in dividing
E_s and the two P_m * E~_m alike by 3. Simplified: features stay fixed (the authors fine-tune their tables); the contrast is
over the distinct users and items of a batch, as a user twice in it would be their own negative.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.graphs import Graph, histories_graph, item_graph, light_gcn, user_item_graph
from tessera.benchmarks.baselines.training import Model, TrainedBaseline, bpr, content, half_squares, info_nce, table
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue

TEMPERATURE = 0.2


class MgcnModel(Model):
    """Behaviour view, one view a modality, and the fuser."""

    def __init__(self, people: Histories, graphs: list[Graph], features: list[Tensor], settings: "Mgcn") -> None:
        super().__init__()
        dim = settings.dim
        self.graphs, self.features, self.settings = graphs, features, settings
        self.interactions = histories_graph(people)
        self.user_item = user_item_graph(people.owners, people.items, len(people), people.n_items)
        self.users, self.items = table(len(people), dim), table(people.n_items, dim)
        self.projections = nn.ModuleList(nn.Linear(values.shape[1], dim) for values in features)
        self.purifiers = nn.ModuleList(nn.Linear(dim, dim) for _ in features)
        self.preferences = nn.ModuleList(nn.Linear(dim, dim) for _ in features)
        self.attention = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))

    def embed(self) -> tuple[Tensor, Tensor]:
        """E_id and E_mul, [n_users + n_items, dim] each."""
        behaviour = light_gcn(self.interactions, torch.cat([self.users, self.items]), self.settings.layers)
        views = torch.stack([self._view(m) for m in range(len(self.features))])
        shared = (torch.softmax(self.attention(views), dim=0) * views).sum(0)
        preferred = torch.stack([torch.sigmoid(preference(behaviour)) for preference in self.preferences])
        return behaviour, shared + (preferred * (views - shared)).mean(0)

    def _view(self, modality: int) -> Tensor:
        """E_m of users and items, [n_users + n_items, dim]."""
        projected = self.projections[modality](self.features[modality])
        items = self.graphs[modality] @ (self.items * torch.sigmoid(self.purifiers[modality](projected)))
        return torch.cat([self.user_item @ items, items])

    def forward(self) -> tuple[Tensor, Tensor]:
        """Final embeddings of users and items."""
        behaviour, content_side = self.embed()
        users, items = (behaviour + content_side).split([len(self.users), len(self.items)])
        return users, items

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR, contrast and penalty."""
        behaviour, content_side = self.embed()
        final, n_users = behaviour + content_side, len(self.users)
        rows = final[users], final[positives + n_users], final[negatives + n_users]
        contrast = sum(
            (
                info_nce(content_side[nodes], behaviour[nodes], TEMPERATURE)
                for nodes in (users.unique(), positives.unique() + n_users)
            ),
            start=torch.zeros(()),
        )
        return bpr(*rows) + self.settings.contrast * contrast + self.settings.penalty * half_squares(*rows)


@dataclass
class Mgcn(TrainedBaseline):
    """MGCN with `layers` hops over the interactions and one over the item graphs, as published."""

    GRID: ClassVar[Grid] = {"learning_rate": (3e-3, 1e-2), "contrast": (0.001, 0.01)}

    layers: int = 2
    neighbours: int = 10
    contrast: float = 0.01

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start, with its frozen graphs."""
        features = list(content(catalogue).values())
        graphs = [item_graph(modality, self.neighbours, weighted=True) for modality in catalogue.features.values()]
        return MgcnModel(people, graphs, features, self)
