"""Writes the lines of a run's metrics: its beginning, every round with its time and traffic, and its result."""

import time
from pathlib import Path
from statistics import mean
from typing import Any

from tessera.common.config.settings import Settings
from tessera.common.errors import RoundAbandoned
from tessera.common.metrics.names import ACCURACY, AUC, MetricName, Scores
from tessera.common.metrics.records import (
    AbandonedRecord,
    EvaluationRecord,
    ResultRecord,
    RoundRecord,
    StatisticsRecord,
    evaluations,
    read_rounds,
)
from tessera.server.aggregate import Aggregate
from tessera.server.federated_stats import Statistics
from tessera.server.model_selection import ModelSelection
from tessera.server.run_folder import RunFolder
from tessera.server.strategies.base import Strategy

WAYS = ("bytes_down", "bytes_up")


class Reporter:
    """Reports one run, and counts the `seconds` that its rounds took; `baselines` are the trivial rankings' scores."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        self.settings, self.folder = settings, folder
        self.seconds = 0.0
        self.baselines: Scores = {}
        self._since = time.monotonic()

    def begin_rounds(self) -> None:
        """Start the clock: what went before is no part of a round."""
        self._since = time.monotonic()

    def statistics(self, found: Statistics) -> None:
        """Report what the federation is."""
        took = {"nodes": found.answer.nodes, "seconds": time.monotonic() - found.began, "baselines": self.baselines}
        sums = dict(found.answer.update.sums.values)
        self.folder.report(StatisticsRecord.model_validate(sums | took | found.answer.faults()))

    def abandoned(self, round: int, reason: RoundAbandoned) -> None:
        """Report that a round brought nothing."""
        self.folder.report(AbandonedRecord(round=round, reason=str(reason), dropped=reason.dropped or None))

    def round(
        self, round: int, training: Aggregate | None, evaluation: Aggregate | None, scores: Scores, people: float
    ) -> None:
        """Report a round; bytes are those of its training and its evaluation, for each of so many `people`.

        A round that was abandoned has said so already; there only an evaluation is reported.
        """
        answers = [answer for answer in (training, evaluation) if answer]
        if not answers:
            return
        now = time.monotonic()
        self.seconds, took, self._since = self.seconds + now - self._since, now - self._since, now
        facts: dict[str, Any] = {"round": round, "nodes": answers[0].nodes, "seconds": took, "scores": scores or None}
        for way in WAYS:
            there = sum(getattr(answer, way) for answer in answers)
            facts |= {f"{way}_per_user": there / people, f"{way}_per_node": there / answers[0].nodes}
        facts |= answers[0].faults(*answers[1:])
        if training:
            sums = training.update.sums
            self.folder.report(RoundRecord(loss=sums.mean("loss", "users"), users=int(sums["users"]), **facts))
        else:
            self.folder.report(EvaluationRecord(**facts))

    def result(self, round: int, selection: ModelSelection, strategy: Strategy) -> ResultRecord:
        """Report the run's figures: scores of the round that was selected on validation."""
        best = selection.best
        facts = {
            "name": self.settings.name,
            "seed": self.settings.seed,
            "rounds": round,
            "selected_round": best.round if best else None,
            "scores": (best.scores if best else {}) | areas(self.folder.path),
            "baselines": self.baselines,
            "seconds": self.seconds,
            "strategy": strategy.report(),
        }
        line = ResultRecord.model_validate(facts | traffic(self.folder.path))
        self.folder.report(line)
        return line


def traffic(run: Path) -> dict[str, float]:
    """Bytes of a round, on average over a run: those that evaluate send more."""
    rounds = read_rounds(run)
    names = [f"{way}_per_{of}" for way in WAYS for of in ("user", "node")]
    return {name: mean(getattr(line, name) for line in rounds) for name in names} if rounds else {}


def areas(run: Path) -> Scores:
    """Mean of each accuracy over the evaluations of a run (A_AUC, Koh et al. 2022)."""
    evaluated = evaluations(run)
    names = sorted({name for scores in evaluated for name in scores if name.metric == ACCURACY})
    found = {name: mean(scores[name] for scores in evaluated if name in scores) for name in names}
    return {MetricName(name.part, name.group, AUC): value for name, value in found.items()}
