"""Popularity within taste groups: what people like who like what this person likes, and nothing of the person alone.

Groups are found by spherical k-means on people's tastes in the leading singular directions of training (`spectral`). It is the
part of GFMFR (Li et al., WWW 2026, arXiv:2509.19955) that a baseline can be made of: a recommender to groups, one score an item
and group. Several published federated methods are below it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.benchmarks.baselines.base import Baseline, Grid
from tessera.benchmarks.baselines.spectral import Spectral
from tessera.client.histories import Histories, histories
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tessera.common.utils import counter_rng

ROUNDS = 50
"""Steps of Lloyd's algorithm at most; it ends before where nobody changes groups."""


@dataclass
class GroupPopularity(Baseline):
    """score(u, i) = number of users with i in their training items in the group nearest to u; equal ones by all users."""

    GRID: ClassVar[Grid] = {"groups": (5, 20, 60)}
    SEEDED: ClassVar[bool] = True

    groups: int = 20
    rank: int = 32

    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Find the groups, and count in each."""
        people = histories(split)
        self._spectral = Spectral(rank=self.rank)
        self._spectral.fit(split, catalogue, seed)
        tastes = self._tastes(people)
        self._centroids = lloyd(tastes, min(self.groups, len(people)), seed)
        own, total = people.counts(), torch.from_numpy(split.counts()).float()
        found = torch.zeros(len(self._centroids), split.n_items).index_add(0, nearest(tastes, self._centroids), own)
        self._scores = found + total / (1 + total.max())

    def scores(self, known: Histories) -> Tensor:
        """The counts of each user's group, [n_users, n_items]."""
        return self._scores[nearest(self._tastes(known), self._centroids)]

    def remarks(self) -> dict[str, float]:
        """How many groups there are."""
        return {"groups": float(len(self._centroids))}

    def _tastes(self, known: Histories) -> Tensor:
        """Unit vectors, [n_users, rank]; zero for who has no known item."""
        return normalize(self._spectral.tastes(known), dim=1)


def nearest(tastes: Tensor, centroids: Tensor) -> Tensor:
    """The group of each user, [n_users], by the largest inner product; of equal ones the first."""
    return (tastes @ centroids.T).argmax(1)


def lloyd(tastes: Tensor, n_groups: int, seed: int) -> Tensor:
    """Centroids [n_groups, rank] of unit length by spherical k-means (Dhillon & Modha 2001), from tastes of drawn users.

    A step needs sums over people alone: of the tastes in each group. A group that nobody is nearest to stays where it is.
    """
    draws = counter_rng.uniform(counter_rng.key("lloyd", seed), torch.arange(len(tastes)))
    centroids, before = tastes[draws.argsort()[:n_groups]], torch.zeros(0)
    for _ in range(ROUNDS):
        groups = nearest(tastes, centroids)
        if torch.equal(groups, before):
            break
        sums = torch.zeros_like(centroids).index_add(0, groups, tastes)
        centroids, before = torch.where(sums.any(1, keepdim=True), normalize(sums, dim=1), centroids), groups
    return centroids
