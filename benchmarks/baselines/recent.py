"""EASE and Spectral with recent events weighted more when they score, and fitted as before: the gain from order alone.

A user's events count (1 + number of later events)^-recency when scores are computed, as in the federation's history view.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tessera.benchmarks.baselines.base import Grid
from tessera.benchmarks.baselines.ease import Ease
from tessera.benchmarks.baselines.spectral import Spectral
from tessera.client.histories import Histories

RECENCY = (0.25, 0.5, 0.75, 1.0, 1.5)


@dataclass
class RecentEase(Ease):
    """EASE with aged histories."""

    GRID: ClassVar[Grid] = {"penalty": (100.0, 300.0, 1000.0), "recency": RECENCY}

    recency: float = 0.5

    def scores(self, known: Histories) -> Tensor:
        """X B with the aged X, [n_users, n_items]."""
        return super().scores(known.aged(self.recency))


@dataclass
class RecentSpectral(Spectral):
    """Spectral with aged histories."""

    GRID: ClassVar[Grid] = {"rank": (64, 128, 256), "power": (0.25, 0.5, 0.75), "recency": RECENCY}

    recency: float = 0.75

    def scores(self, known: Histories) -> Tensor:
        """Project the aged histories, [n_users, n_items]."""
        return super().scores(known.aged(self.recency))
