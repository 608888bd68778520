"""BM3: self-supervised multimodal recommendation without negatives.

Users and items learn to predict each other's dropped-out views, and the content to predict the item.

Zhou et al., Bootstrap latent representations for multi-modal recommendation, WWW 2023. With C the negative cosine, sg the
stopped gradient, h the LightGCN embeddings (items plus their own embedding), e_m = f_m W_m + b_m the content, and for each x
the dropped-out target x' and the prediction x~ = f_p(x) of one shared linear predictor:
  L_rec = C(h~_u, sg(h'_i)) + C(sg(h'_u), h~_i),  L_align = sum_m C(e~_m, sg(h'_i)),  L_mask = sum_m C(e~_m, sg(e'_m)),
  L = L_rec + L_align + L_mask + penalty (|h_u|^2 + |h_i|^2);  score = h~_u . h~_i.
Simplified: features stay fixed (the authors fine-tune their tables); the penalty is on the rows of the batch; the content terms
weigh 1 as in the paper.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, dropout

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.graphs import Graph, histories_graph, light_gcn
from tessera.benchmarks.baselines.training import Model, TrainedBaseline, content, half_squares, table
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue


class Bm3Model(Model):
    """Online network and dropped-out targets share all parameters."""

    def __init__(self, graph: Graph, n_users: int, features: list[Tensor], settings: "Bm3") -> None:
        super().__init__()
        self.graph, self.features, self.settings = graph, features, settings
        self.users = table(n_users, settings.dim)
        self.items = table(len(features[0]), settings.dim)
        self.projections = nn.ModuleList(nn.Linear(values.shape[1], settings.dim) for values in features)
        self.predictor = nn.Linear(settings.dim, settings.dim)

    def embed(self) -> tuple[Tensor, Tensor]:
        """h of users [n_users, dim] and of items [n_items, dim]."""
        nodes = light_gcn(self.graph, torch.cat([self.users, self.items]), self.settings.layers)
        users, items = nodes.split([len(self.users), len(self.items)])
        return users, items + self.items

    def forward(self) -> tuple[Tensor, Tensor]:
        """h~ of users and items."""
        users, items = self.embed()
        return self.predictor(users), self.predictor(items)

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """L_rec + L_align + L_mask + penalty; the negatives are not used."""
        all_users, all_items = self.embed()
        people, items = all_users[users], all_items[positives]
        targets = self._target(items)
        total = self._distance(people, targets) + self._distance(items, self._target(people))
        for projection, values in zip(self.projections, self.features, strict=True):
            modality = projection(values[positives])
            total = total + self._distance(modality, targets) + self._distance(modality, self._target(modality))
        return total + self.settings.penalty * half_squares(people, items)

    def _target(self, online: Tensor) -> Tensor:
        return dropout(online.detach(), self.settings.dropout)

    def _distance(self, online: Tensor, target: Tensor) -> Tensor:
        return 1 - cosine_similarity(self.predictor(online), target).mean()


@dataclass
class Bm3(TrainedBaseline):
    """BM3 with `layers` hops and `dropout` of the targets."""

    GRID: ClassVar[Grid] = {"layers": (1, 2), "dropout": (0.3, 0.5)}

    layers: int = 1
    dropout: float = 0.5
    patience: int = 30
    """Longer than the others': without negatives the ranking gets worse for some ten epochs before it gets better."""

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start."""
        return Bm3Model(histories_graph(people), len(people), list(content(catalogue).values()), self)
