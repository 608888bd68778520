"""ItemKNN: the items most similar to those of the history.

Sarwar et al., Item-based collaborative filtering recommendation algorithms, WWW 2001; on implicit feedback with the
shrinkage term of Bell & Koren, Scalable collaborative filtering with jointly derived neighborhood interpolation weights,
ICDM 2007.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tessera.benchmarks.baselines.base import Baseline, Grid, interaction_matrix
from tessera.client.histories import Histories, histories
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split


@dataclass
class ItemKNN(Baseline):
    """sim(i, j) = |U_i and U_j| / (sqrt(|U_i| |U_j|) + shrinkage), the `neighbours` largest for each i; score = R sim^T."""

    GRID: ClassVar[Grid] = {"neighbours": (3, 5, 10, 20, 50, 100, 200), "shrinkage": (0.0, 5.0, 20.0, 50.0, 100.0)}

    neighbours: int = 100
    shrinkage: float = 20.0

    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Compute the sparse similarities S [n_items, n_items] (kept dense), row i holding the neighbours of i."""
        interactions = interaction_matrix(histories(split))
        together = interactions.T @ interactions
        norms = together.diagonal().sqrt()
        similarity = (together / (norms[:, None] * norms + self.shrinkage).clamp(min=1e-12)).fill_diagonal_(0)
        values, columns = similarity.topk(min(self.neighbours, split.n_items), dim=1)
        self._similarity = similarity.zero_().scatter_(1, columns, values)

    def scores(self, known: Histories) -> Tensor:
        """Sum over the history of its similarity to each item, [n_users, n_items]."""
        return interaction_matrix(known) @ self._similarity.T
