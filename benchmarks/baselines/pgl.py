"""PGL: principal graph learning for multimodal recommendation.

In training, messages pass over a sampled principal subgraph of the interactions; at inference over all of them.

Yu et al., Mind individual information! Principal graph learning for multimedia recommendation, AAAI 2025.
  items      x_i = the modalities' projections W_m f_m + b_m, each of unit norm, side by side; no item embedding
  users      an embedding of the same width
  principal  LightGCN over the subgraph of a share (0.3) of the edges, drawn anew every epoch without replacement and with
             probability proportional to 1 / sqrt(|N_u| |N_i|) (local-aware extraction), normalised by its own degrees
  latent     items add S x_i, S the frozen item graph (10 neighbours, equal weights), a weighted sum over modalities
  loss       BPR + contrast (InfoNCE_users + InfoNCE_items) / 2 between two random feature maskings of the final embeddings
What the paper leaves open follows the authors' released settings (2 hops, 1 latent hop, unit norms,
masking 0.2, temperature 0.2, image weight 0.1, no penalty). Simplified: only local-aware extraction, not the global-aware one
by truncated SVD; features stay fixed (the authors fine-tune their tables); the contrast is over the distinct users and items
of a batch.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.graphs import (
    Graph,
    bipartite_graph,
    edge_values,
    histories_graph,
    item_graph,
    light_gcn,
    weighted_sum,
)
from tessera.benchmarks.baselines.training import Model, TrainedBaseline, bpr, content, info_nce, table
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue

TEMPERATURE = 0.2


class PglModel(Model):
    """Principal and latent graph learning."""

    def __init__(self, people: Histories, latent: Graph, features: dict[str, Tensor], settings: "Pgl") -> None:
        super().__init__()
        self.people, self.latent, self.features, self.settings = people, latent, features, settings
        self.complete = self.principal = histories_graph(people)
        self.users = table(len(people), settings.dim * len(features))
        self.projections = nn.ModuleDict(
            {n: nn.Linear(values.shape[1], settings.dim) for n, values in features.items()}
        )

    def begin_epoch(self) -> None:
        """Draw the principal subgraph."""
        chances = edge_values(self.people.owners, self.people.items)
        kept = torch.multinomial(chances, max(1, int(self.settings.kept * len(chances))))
        edges = self.people.owners[kept], self.people.items[kept]
        self.principal = bipartite_graph(*edges, len(self.people), self.people.n_items)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Final embeddings of users and items: over the principal subgraph in training, over the complete graph otherwise."""
        raw = torch.cat([normalize(self.projections[n](values), dim=1) for n, values in self.features.items()], dim=1)
        graph = self.principal if self.training else self.complete
        nodes = light_gcn(graph, torch.cat([self.users, raw]), self.settings.layers)
        users, items = nodes.split([len(self.users), len(raw)])
        return users, items + self.latent @ raw

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR and the contrast of two maskings."""
        people, items = self()
        contrast = (self._contrast(people[users.unique()]) + self._contrast(items[positives.unique()])) / 2
        return bpr(people[users], items[positives], items[negatives]) + self.settings.contrast * contrast

    def _contrast(self, rows: Tensor) -> Tensor:
        first, second = (dropout(rows, self.settings.masking) for _ in range(2))
        return info_nce(first, second, TEMPERATURE)


def modality_weights(names: list[str], image: float) -> dict[str, float]:
    """`image` for the modality of that name and equal shares of the rest for the others; they add up to 1."""
    others = [name for name in names if name != "image"]
    if len(others) == len(names) or not others:
        return dict.fromkeys(names, 1 / len(names))
    return {name: image if name == "image" else (1 - image) / len(others) for name in names}


@dataclass
class Pgl(TrainedBaseline):
    """PGL with local-aware extraction. `penalty` is not used: the published loss has none."""

    GRID: ClassVar[Grid] = {"learning_rate": (3e-3, 1e-2), "contrast": (0.01, 0.05)}

    layers: int = 2
    neighbours: int = 10
    kept: float = 0.3
    masking: float = 0.2
    contrast: float = 0.05
    image_weight: float = 0.1

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start, with its frozen graphs."""
        graphs = [item_graph(modality, self.neighbours, weighted=False) for modality in catalogue.features.values()]
        weights = modality_weights(list(catalogue.features), self.image_weight)
        return PglModel(people, weighted_sum(graphs, list(weights.values())), content(catalogue), self)
