"""EASE: an item-item regression with a zero diagonal, in closed form.

Steck, Embarrassingly shallow autoencoders for sparse data, WWW 2019, Eq. 8: with P = (X^T X + lambda I)^-1,
B_ij = -P_ij / P_jj off the diagonal and 0 on it; score = X B.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tessera.benchmarks.baselines.base import Baseline, Grid, interaction_matrix
from tessera.client.histories import Histories, histories
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split


@dataclass
class Ease(Baseline):
    """B = argmin |X - X B|^2 + penalty |B|^2 with diag(B) = 0."""

    GRID: ClassVar[Grid] = {"penalty": (30.0, 100.0, 200.0, 300.0, 500.0, 1000.0)}

    penalty: float = 300.0

    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Invert the penalised Gram matrix (float64): B [n_items, n_items]."""
        interactions = interaction_matrix(histories(split), torch.float64)
        gram = interactions.T @ interactions
        gram.diagonal().add_(self.penalty)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self._weights = (inverse / -inverse.diagonal()).fill_diagonal_(0)

    def scores(self, known: Histories) -> Tensor:
        """X B, [n_users, n_items]."""
        return interaction_matrix(known, torch.float64) @ self._weights
