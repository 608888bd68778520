"""Spectral: users and items by the leading singular vectors of the interactions, without training.

PureSVD (Cremonesi, Koren & Turrin, Performance of recommender algorithms on top-n recommendation tasks, RecSys 2010) with
two changes that matter here: users are scaled by |history|^-1/4 before the decomposition, so that long histories do not
dominate the directions, and directions count by (s / s_1)^power. It is what the federation's history view is started from.
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
class Spectral(Baseline):
    """score(u) = r_u V diag((s / s_1)^power) V^T, with V the `rank` leading right singular vectors of diag(|r_u|^-1/4) R."""

    GRID: ClassVar[Grid] = {"rank": (16, 32, 64, 128, 256), "power": (0.0, 0.25, 0.5, 0.75, 1.0)}

    rank: int = 128
    power: float = 0.5

    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Decompose, in full and in float64, the scaled interactions [n_users, n_items]."""
        people = histories(split)
        sizes = people.lengths().clamp(min=1).double()
        scaled = interaction_matrix(people, torch.float64) * sizes[:, None] ** -0.25
        _, values, right = torch.linalg.svd(scaled, full_matrices=False)
        right[:, split.counts() == 0] = 0  # unseen items tie at zero; rounding errors must not order them
        self._directions = right[: self.rank].T
        self._gains = (values[: self.rank] / values[0]) ** self.power

    def scores(self, known: Histories) -> Tensor:
        """Project the histories, weigh, project back, [n_users, n_items]."""
        return self.tastes(known) @ self._directions.T

    def tastes(self, known: Histories) -> Tensor:
        """Histories by the weighed directions, [n_users, rank]."""
        return interaction_matrix(known, torch.float64) @ self._directions * self._gains
