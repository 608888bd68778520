"""Defines what a centralised baseline is: fitted on all users' training items, it scores the whole catalogue for each user."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from tessera.client.histories import Histories
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError
from tessera.common.metrics.names import NDCG
from tessera.common.metrics.ranking import standing
from tessera.common.metrics.several import person_values

Grid = Mapping[str, Sequence[Any]]
"""Hyperparameters and the values to try of each."""


@dataclass
class Baseline(ABC):
    """A centralised recommender. Its fields are its hyperparameters; `GRID` names the values that validation chooses from."""

    GRID: ClassVar[Grid] = {}
    QUICK: ClassVar[Mapping[str, Any]] = {}
    """What `--quick` changes, instead of searching the grid."""
    SEEDED: ClassVar[bool] = False
    """Whether the seed changes anything."""

    @abstractmethod
    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Learn from the training items of `split`. Its test items are never read; its validation items only to stop early."""

    @abstractmethod
    def scores(self, known: Histories) -> Tensor:
        """Score the catalogue for the users of `fit`, whose histories are now `known`, [n_users, n_items]."""

    @classmethod
    def candidates(cls, quick: bool = False) -> list[Self]:
        """Every combination of the grid; with `quick` one baseline, with what QUICK says."""
        if quick:
            return [cls(**cls.QUICK)]
        return [cls(**dict(zip(cls.GRID, values, strict=True))) for values in product(*cls.GRID.values())]

    def chosen(self) -> dict[str, Any]:
        """The hyperparameters that the grid varies."""
        return {name: value for name, value in asdict(self).items() if name in self.GRID}

    def remarks(self) -> dict[str, float]:
        """What is worth reporting of the last fit."""
        return {}


def interaction_matrix(histories: Histories, dtype: torch.dtype = torch.float32) -> Tensor:
    """Which user has which item, R [n_users, n_items], dense: 1 or, in aged histories, the event's weight; 0 elsewhere."""
    matrix = torch.zeros(len(histories), histories.n_items, dtype=dtype)
    matrix[histories.owners, histories.items] = histories.shown.to(dtype)
    return matrix


def validation_ndcg(scores: Tensor, histories: Histories, split: Split, k: int = 50) -> float:
    """Mean tie-aware NDCG@k of the validation items, training items masked: the one figure that anything is chosen by.

    Raises `DataError` where nobody has a validation item.
    """
    rows, targets = torch.from_numpy(split.validation.owners), torch.from_numpy(split.validation.items)
    if not len(rows):
        raise DataError("nobody has a validation item, so there is nothing to choose by")
    above, ties = standing(scores[rows], targets, ~histories.mask()[rows])
    _, values = person_values(rows, above, ties, (NDCG,), (k,))
    return float(values[NDCG, k].mean())
