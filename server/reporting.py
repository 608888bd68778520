"""Writes the lines of a run's metrics: its beginning, every round with its time and traffic, and its result."""

import logging
import time
from pathlib import Path
from statistics import mean
from typing import Any

from tessera.common.config.settings import Settings
from tessera.common.data.interactions import TIES
from tessera.common.errors import RoundAbandoned, RunError
from tessera.common.metrics.names import ACCURACY, AUC, MetricName, Scores
from tessera.common.metrics.ranking import MetricSums, percentages
from tessera.common.metrics.records import (
    AbandonedRecord,
    BaselinesRecord,
    Compared,
    EvaluationRecord,
    ResultRecord,
    RoundRecord,
    StatisticsRecord,
    Ties,
    evaluations,
    read_records,
    read_rounds,
)
from tessera.common.privacy.account import Account
from tessera.common.protocol.figures import TIED
from tessera.common.utils.computing.precision import described
from tessera.server.aggregate import Aggregate
from tessera.server.model_selection import ModelSelection
from tessera.server.run_folder import Progress, RunFolder
from tessera.server.strategies.base import Strategy

log = logging.getLogger("tessera.server")
WAYS = ("bytes_down", "bytes_up")


class Reporter:
    """Reports one run, and counts the `seconds` that its rounds took and, in `account`, what they tell of a person; `baselines`
    are the trivial rankings' scores, `compared` whom they are of, and `uncounted` says why warm and cold targets are not told
    apart, if they are not."""

    def __init__(self, settings: Settings, folder: RunFolder) -> None:
        self.settings, self.folder = settings, folder
        self.seconds = 0.0
        self.baselines: Scores = {}
        self.compared: Compared | None = None
        self.uncounted: str | None = None
        self.ties: Ties | None = None
        self.account = Account(settings.privacy, settings.fraction)
        self._since = time.monotonic()

    def begin_rounds(self) -> None:
        """Start the clock: what went before is no part of a round."""
        self._since = time.monotonic()

    def go_on(self, progress: Progress) -> None:
        """Go on from a checkpoint."""
        self.seconds, self.account.rounds = progress.seconds, progress.trained

    def progress(self, selection: ModelSelection, due: int) -> Progress:
        """What a checkpoint is to hold of a run, whose evaluation of the round `due` is still to come."""
        return Progress(
            best=selection.best,
            told=selection.told,
            due=due,
            seconds=self.seconds,
            trained=self.account.rounds,
        )

    def last_round(self, done: int, wanted: int) -> int:
        """The last round that the run may train once `done` are: as many more as `wanted`, or as the budget of epsilon allows.
        Raises `RunError` where it allows none. What a resumed run does again counts twice."""
        self.account.rounds += self.folder.repeated
        last = done + self.account.affords(wanted)
        if last < done + wanted:
            most = self.settings.privacy.max_epsilon
            log.warning("the run ends after round %d: another would pass privacy.max_epsilon %g", last, most)
        return last

    def statistics(self, answer: Aggregate, seconds: float, groups: int | None) -> None:
        """Report what the federation is; `groups` are those whose sums the server sees, where it sees no more."""
        facts = {"nodes": answer.nodes, "seconds": seconds, "groups": groups, "ties": self.ties}
        sums = {name: value for name, value in answer.update.sums.values.items() if name not in TIED.values()}
        self.folder.report(StatisticsRecord.model_validate(sums | facts | answer.faults()))

    def trivial(self, answer: Aggregate, selection: ModelSelection) -> None:
        """Report the trivial rankings' figures, and whether they are of the people of the selected round."""
        if answer.failure:
            log.warning("the baselines are left out: %s", answer.failure)
        sums, best = MetricSums() if answer.failure else answer.update.sums, selection.best
        self.baselines = percentages(sums)
        people, nodes = sums["evaluated"], answer.nodes if sums.values else 0
        line = BaselinesRecord(nodes=nodes, people=people, scores=self.baselines, **answer.faults())
        self.folder.report(line)
        if best:
            known = selection.nodes is None or selection.nodes == answer.answered
            same = known and (people, nodes) == (best.people, best.nodes) and _as_many(best.scores, self.baselines)
            self.compared = Compared(
                people=best.people, nodes=best.nodes, baselines_people=people, baselines_nodes=nodes, same=same
            )

    def abandoned(self, round: int, reason: RoundAbandoned) -> None:
        """Report that a round brought nothing."""
        self.folder.report(AbandonedRecord(round=round, reason=str(reason), dropped=reason.dropped or None))

    def round(self, round: int, training: Aggregate, people: float) -> None:
        """Report a round of training; bytes are for each of so many `people`."""
        sums = training.update.sums
        facts = _facts(round, training, people) | {"users": int(sums["users"]), "seconds": self._took()}
        loss = None if self.settings.privacy.distributed else sums.mean("loss", "users")
        self.folder.report(RoundRecord.model_validate(facts | {"loss": loss, "epsilon": self.account.epsilon}))

    def evaluation(self, round: int, answer: Aggregate, scores: Scores, people: float, along: bool) -> None:
        """Report what a round reached; `along` with a training, whose time is that of both."""
        facts = _facts(round, answer, people) | {"scores": scores, "people": answer.update.sums["evaluated"]}
        facts |= {"seconds": 0.0 if along else self._took()}
        self.folder.report(EvaluationRecord.model_validate(facts))

    def _took(self) -> float:
        """Seconds since this was asked before, which it adds to those of all rounds."""
        now = time.monotonic()
        took, self._since = now - self._since, now
        self.seconds += took
        return took

    def result(self, round: int, selection: ModelSelection, strategy: Strategy) -> ResultRecord:
        """Report the run's figures: scores of the round that was selected on validation. Raises `RunError` where nobody
        took part in any round: what was evaluated is the start, and nothing was learnt."""
        if not any(line.users for line in read_rounds(self.folder.path)):
            chance = (
                f"each of {selection.people:.0f} people takes part with chance {self.settings.fraction:g} (fraction)"
            )
            raise RunError(f"nothing was learnt in {round} rounds, as nobody took part in any of them: {chance}")
        best = selection.best
        self._took()
        facts = {
            "name": self.settings.name,
            "seed": self.settings.seed,
            "rounds": round,
            "first": self.folder.first or None,
            "selected_round": best.round if best else None,
            "scores": (best.scores if best else {}) | areas(self.folder.path),
            "baselines": self.baselines,
            "compared": self.compared,
            "uncounted": self.uncounted,
            "ties": self.ties,
            "precision": None if self.settings.asks_questions else described(self.settings.local.precision),
            "seconds": self.seconds,
            "strategy": strategy.report(),
            "epsilon": self.account.epsilon,
            "delta": self.settings.privacy.delta if self.account.epsilon is not None else None,
        }
        line = ResultRecord.model_validate(facts | traffic(self.folder.path))
        self.folder.report(line)
        return line


def _facts(round: int, answer: Aggregate, people: float) -> dict[str, Any]:
    """What every line of a round says: who answered, what was dropped, and bytes for each of so many people and each node."""
    facts = {"round": round, "nodes": answer.nodes} | answer.faults()
    for way in WAYS:
        there = getattr(answer, way)
        facts |= {f"{way}_per_user": there / people, f"{way}_per_node": there / answer.nodes}
    return facts


def _as_many(scores: Scores, baselines: Scores) -> bool:
    """Whether the baselines have as many people with targets as the run, in each part and group that both tell of."""
    return all(scores.get(name.of(""), users) == users for name, users in baselines.items() if name.counts)


def ties(sums: MetricSums) -> Ties | None:
    """What item statistics say of tied targets; None where a device withholds it, or there are no targets."""
    shares = {part: sums.mean(tied, part) for part, tied in TIED.items()}
    if sums["withheld"] or None in shares.values():
        return None
    return Ties.model_validate({part: 100 * (share or 0) for part, share in shares.items()} | {"order": TIES})


def traffic(run: Path) -> dict[str, float]:
    """Bytes of a round, on average over a run: its training, and its share of the evaluations."""
    lines = [line for line in read_records(run) if isinstance(line, RoundRecord | EvaluationRecord)]
    rounds = sum(isinstance(line, RoundRecord) for line in lines)
    names = [f"{way}_per_{of}" for way in WAYS for of in ("user", "node")]
    return {name: sum(getattr(line, name) for line in lines) / rounds for name in names} if rounds else {}


def areas(run: Path) -> Scores:
    """Mean of each accuracy over the evaluations of a run (A_AUC, Koh et al. 2022)."""
    evaluated = evaluations(run)
    names = sorted({name for scores in evaluated for name in scores if name.metric == ACCURACY})
    found = {name: mean(scores[name] for scores in evaluated if name in scores) for name in names}
    return {MetricName(name.part, name.group, AUC): value for name, value in found.items()}
