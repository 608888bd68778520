"""Which round's model is kept: the one that ranks best on validation when everybody is evaluated, never one chosen on test."""

import logging
from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

from tessera.common.config.settings import Settings
from tessera.common.metrics.names import ACCURACY, ALL, BEFORE, NDCG, VALIDATION, MetricName, Scores

log = logging.getLogger("tessera.server")
MISSING = 3
"""Evaluations in a row that people may be missing from before they count as gone."""


def criterion(settings: Settings) -> MetricName:
    """What rounds, and the choices of a bench, are compared by: NDCG at the largest K or, of questions, right answers."""
    if settings.asks_questions:
        return MetricName(BEFORE, VALIDATION, ACCURACY)
    return MetricName(VALIDATION, ALL, NDCG, max(settings.evaluation.ks))


class Best(BaseModel):
    """The best round so far, what it reached on validation, its scores, and how many people on how many nodes they are of."""

    model_config = ConfigDict(frozen=True)

    round: int
    criterion: float
    scores: Scores
    people: float = 0.0
    nodes: int = 0


class ModelSelection:
    """Compares the rounds of a run by their evaluations, and says when there is nothing better to wait for.

    `people` are how many there are to evaluate; where none of them is `validated`, the last round is the best. `told` is the
    best round that the clients have heard of, and `nodes` are those that evaluated the best one; None where an earlier process
    of this run found it: over gRPC nodes may be called otherwise since.
    """

    def __init__(self, settings: Settings, patience: int) -> None:
        self.settings, self.patience = settings, patience
        self.best: Best | None = None
        self.nodes: frozenset[int] | None = None
        self.people = 0.0
        self.validated = True
        self.told = 0
        self._short = 0

    @property
    def round(self) -> int:
        """The best round so far; 0 when none was evaluated."""
        return self.best.round if self.best else 0

    def consider(self, round: int, scores: Scores, evaluated: float, nodes: Collection[int]) -> None:
        """Take the scores of a round, for which `nodes` that knew of the best one till then `evaluated` so many people."""
        self.told = self.round
        worth, everybody = self._worth(round, scores), self._everybody(round, evaluated)
        if self.best is None or (everybody and worth > self.best.criterion):
            self.best = Best(round=round, criterion=worth, scores=scores, people=evaluated, nodes=len(nodes))
            self.nodes = frozenset(nodes)

    def stale(self, round: int) -> bool:
        """Whether the evaluations up to `round`, as many as the patience allows, brought nothing better."""
        rounds = self.patience * self.settings.evaluation.every
        return bool(self.best and rounds and round - self.round >= rounds)

    def _worth(self, round: int, scores: Scores) -> float:
        """What a round is selected by. Devices that answer questions go by the last one: a merge is good for what follows."""
        last = self.settings.asks_questions or not self.validated
        return float(round) if last else scores.get(criterion(self.settings), 0.0)

    def _everybody(self, round: int, evaluated: float) -> bool:
        """Whether all people were evaluated: scores of others are not comparable, and make no round the best.

        People who are missing several times in a row are gone; then, and when somebody is there again, the search begins anew.
        """
        self._short = self._short + 1 if evaluated < self.people else 0
        if 0 < self._short < MISSING:
            return False
        if evaluated != self.people:
            log.warning("round %d: of %d people %d are evaluated from here on", round, self.people, evaluated)
            self.people, self._short, self.best = evaluated, 0, None
        return True
