"""Popularity: the same ranking for all users, by how often an item occurs in training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.benchmarks.baselines.base import Baseline
from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split


@dataclass
class Popularity(Baseline):
    """score(u, i) = number of users with i in their training items."""

    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Count."""
        self._counts = torch.from_numpy(split.counts()).float()

    def scores(self, known: Histories) -> Tensor:
        """The counts, [n_users, n_items]."""
        return self._counts.expand(len(known), -1)
