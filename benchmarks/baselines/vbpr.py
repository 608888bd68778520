"""VBPR: matrix factorisation whose items also have a learnt projection of their content.

He & McAuley, VBPR: visual Bayesian personalized ranking from implicit feedback, AAAI 2016, Eq. 4 and 7:
x_ui = alpha + beta_u + beta_i + gamma_u^T gamma_i + theta_u^T (E f_i) + beta'^T f_i, trained by BPR. alpha and beta_u cancel
in BPR and in any user's ranking and are left out. f is all modalities side by side, as multimodal benchmarks run it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.training import Model, TrainedBaseline, bpr, content, half_squares, table
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue


class VbprModel(Model):
    """Written as one inner product: [gamma_u, theta_u, 1] . [gamma_i, E f_i, beta_i + beta'^T f_i]."""

    def __init__(self, n_users: int, features: Tensor, dim: int, penalty: float) -> None:
        super().__init__()
        self.penalty = penalty
        self.features = features
        self.users = table(n_users, 2 * dim)
        self.items = table(len(features), dim)
        self.projection = table(features.shape[1], dim)
        self.bias = nn.Parameter(torch.zeros(len(features)))
        self.content_bias = nn.Parameter(torch.zeros(features.shape[1]))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Embed all users and items, width 2 dim + 1."""
        bias = self.bias + self.features @ self.content_bias
        items = torch.cat([self.items, self.features @ self.projection, bias[:, None]], dim=1)
        return torch.cat([self.users, torch.ones(len(self.users), 1)], dim=1), items

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """BPR and the squares of the parameters that the batch touched."""
        people, items = self()
        touched = (self.users[users], self.items[positives], self.items[negatives])
        shared = self.projection.square().sum() + self.content_bias.square().sum() + self.bias.square().sum()
        squares = half_squares(*touched) + shared / (2 * len(users))
        return bpr(people[users], items[positives], items[negatives]) + self.penalty * squares


@dataclass
class Vbpr(TrainedBaseline):
    """VBPR with `dim` collaborative and `dim` content factors."""

    GRID: ClassVar[Grid] = {"learning_rate": (1e-3, 3e-3), "penalty": (1e-3, 1e-2)}

    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start."""
        features = torch.cat(list(content(catalogue).values()), dim=1)
        return VbprModel(len(people), features, self.dim, self.penalty)
