"""The round loop: broadcast, gather, step, evaluate, checkpoint."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import RoundAbandoned, RunError
from tessera.common.metrics.ranking import MetricSums, ranking_means
from tessera.common.protocol.messages import BASIS, CONTENT, COUNTS, Kind, Task
from tessera.common.protocol.tensors import Tensors
from tessera.server.aggregate import Aggregate
from tessera.server.dispatch import Dispatcher, no_broadcast
from tessera.server.run_folder import RunFolder, read_metrics, read_scores
from tessera.server.strategies.base import Strategy
from tessera.server.views.spectral_init import leading_vectors

log = logging.getLogger("tessera.server")
ACCURACY = "/accuracy"
ABANDONED = 3
"""Rounds, or the same question of a round, that may come to nothing one after the other before the run gives up."""


def run_rounds(
    nodes: Dispatcher, strategy: Strategy, settings: Settings, catalogue: Catalogue, folder: RunFolder
) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start, to the end, and return the run's result."""
    run = Run(nodes, strategy, settings, folder)
    run.restore()
    nodes.wait()
    inputs = run.item_statistics(catalogue)
    run.spectral_start(len(catalogue))
    for round in range(run.round + 1, settings.rounds + 1):
        if run.stale:  # validation has not got better for long, here or before a resumed run was stopped
            break
        # 1. Build the views from the catalogue and what is learnt so far. 2. Broadcast them; nodes that hold them get a hash.
        # 3. The nodes train their people and return gradients. 4. Their updates are added up as they arrive.
        run.round = round
        try:
            answer = run.dispatch("train")
            # 5. One vector-Jacobian product takes the sum to all parameters; one step.
            strategy.aggregate(answer.update)
        except RoundAbandoned as reason:
            answer = None
            run.abandon(reason)
        # 6. Every few rounds the devices evaluate what they now have, and return sums.
        due = (answer and round % settings.evaluation.every == 0) or round == settings.rounds
        evaluation, scores = run.evaluate(inputs) if due else (None, {})
        # 7. Report, and checkpoint.
        run.report(answer, evaluation, scores)
        run.checkpoint()
    return run.result()


class Run:
    """What the round loop carries from round to round. What a resumed run cannot find out again is in every checkpoint."""

    def __init__(self, nodes: Dispatcher, strategy: Strategy, settings: Settings, folder: RunFolder) -> None:
        self.nodes, self.strategy, self.settings, self.folder = nodes, strategy, settings, folder
        self.round = self.abandoned = 0
        self.best: dict[str, Any] = {}
        self.baselines: dict[str, float] = {}
        self.seconds = 0.0
        self.people = 0.0
        self._short = 0
        self._since = time.monotonic()

    def restore(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        if found := self.folder.load():
            self.round, progress, tensors = found
            self.best, self.baselines = progress["best"], progress["baselines"]
            self.seconds = progress["seconds"]
            self.strategy.restore(tensors)
        self._since = time.monotonic()

    def dispatch(
        self, kind: Kind, inputs: Tensors | None = None, counts: Mapping[str, torch.Size] | None = None
    ) -> Aggregate:
        """Give nodes a task of this round, and with it what the strategy has for each; `counts` are shapes that may come back.

        Training that too few answered is abandoned by raising `RoundAbandoned`; anything else is asked again, and raises
        `RunError` when that is of no use.
        """
        broadcast = self.strategy.broadcast if kind in ("train", "evaluate") else no_broadcast
        views, items = self.strategy.views, self.strategy.catalogue
        task = Task(kind, self.folder.run, self.round, self.folder.durable(), views, items, self.settings)
        ask = partial(self.nodes.dispatch, task, broadcast, inputs, self.strategy.check, counts)
        if kind == "train":
            return ask()
        for _ in range(ABANDONED - 1):
            with suppress(RoundAbandoned):
                return ask()
        try:
            return ask()
        except RoundAbandoned as reason:
            raise RunError(str(reason)) from None

    def item_statistics(self, catalogue: Catalogue) -> Tensors:
        """Ask how often each item occurs in training, and evaluate the baselines once; return the counts.

        There are none when a device withholds its own: then warm and cold targets cannot be told apart.
        """
        started = time.monotonic()
        answer = self.dispatch("item_statistics", counts={COUNTS: torch.Size([len(catalogue)])})
        self.people = answer.update.sums["users"]
        if not self.people:
            raise RunError("no device has anybody to train")
        counts = {} if answer.update.sums["withheld"] else {COUNTS: answer.update.counts[COUNTS]}
        if self.settings.evaluation.baselines and not self.baselines:
            inputs = {} if self.settings.asks_questions else counts | _content(catalogue)
            self.baselines = _means(self.dispatch("baselines", inputs).update.sums)
        if not self.round:
            line = {"kind": "item_statistics", "round": 0, **dict(answer.update.sums.values), "nodes": answer.nodes}
            line |= answer.faults() | {"baselines": self.baselines, "seconds": time.monotonic() - started}
            self.folder.report(line)
        self._since = time.monotonic()
        return counts

    def spectral_start(self, n_items: int) -> None:
        """Before the first round, where the settings ask for it: a few additive rounds that find the embeddings' start."""
        views = self.settings.views
        if self.round or not views.spectral_rounds:
            return
        product = lambda basis: self.dispatch("power", {BASIS: basis}, {BASIS: basis.shape}).update.counts[BASIS]  # noqa: E731
        rank = min(views.dim, views.id_dim, n_items)
        vectors, values = leading_vectors(product, n_items, rank, views.spectral_rounds, self.settings.seed)
        self.strategy.initialise(vectors, values)
        self._since = time.monotonic()

    def abandon(self, reason: RoundAbandoned) -> None:
        """Note that a round brought nothing. Raises `RunError` when it is one of too many in a row."""
        self.abandoned += 1
        line = {"kind": "abandoned", "round": self.round, "reason": str(reason)}
        self.folder.report(line | ({"dropped": reason.dropped} if reason.dropped else {}))
        if self.abandoned >= ABANDONED:
            raise RunError(f"round {self.round}: {ABANDONED} rounds in a row were abandoned; the last one: {reason}")

    def evaluate(self, inputs: Tensors) -> tuple[Aggregate, dict[str, float]]:
        """Have the devices rank the catalogue, and see whether the round is the best."""
        answer = self.dispatch("evaluate", inputs)
        sums = answer.update.sums
        scores = _means(MetricSums({name: value for name, value in sums.values.items() if "/" in name}))
        worth, everybody = self._worth(scores), self._everybody(sums["evaluated"])
        if (everybody or not self.best) and worth > self.best.get("criterion", -1.0):
            self.best = {"round": self.round, "criterion": worth, "scores": scores}
        return answer, scores

    def _everybody(self, evaluated: float) -> bool:
        """Whether all people were evaluated: scores of others are not comparable, and make no round the best.

        People who are missing several times in a row are gone; then, and when somebody is there again, the search begins anew.
        """
        self._short = self._short + 1 if evaluated < self.people else 0
        if 0 < self._short < ABANDONED:
            return False
        if evaluated != self.people:
            log.warning("round %d: of %d people %d are evaluated from here on", self.round, self.people, evaluated)
            self.people, self._short, self.best = evaluated, 0, {}
        return True

    def _worth(self, scores: dict[str, float]) -> float:
        """What a round is selected by: NDCG on validation. Of questions there is no validation: the last round counts."""
        ndcg = f"validation/all/ndcg@{max(self.settings.evaluation.ks)}"
        return float(self.round) if self.settings.asks_questions else scores.get(ndcg, 0.0)

    @property
    def stale(self) -> bool:
        """Whether the last evaluations, as many as the patience allows, brought nothing better on validation."""
        patience = self.settings.evaluation.patience * self.settings.evaluation.every
        return bool(patience and self.best and self.round - self.best["round"] >= patience)

    def report(self, training: Aggregate | None, evaluation: Aggregate | None, scores: dict[str, float]) -> None:
        """Append the round's line to the metrics; bytes are those of its training and its evaluation.

        A round that was abandoned has said so already; there only an evaluation is reported.
        """
        answers = [answer for answer in (training, evaluation) if answer]
        if not answers:
            return
        now = time.monotonic()
        self.seconds, took, self._since = self.seconds + now - self._since, now - self._since, now
        line: dict[str, Any] = {"kind": "round" if training else "evaluation", "round": self.round}
        if training:
            self.abandoned, sums = 0, training.update.sums
            line |= {"loss": sums.mean("loss", "users"), "users": int(sums["users"])}
        line |= {"nodes": answers[0].nodes, "seconds": took}
        for way in ("bytes_down", "bytes_up"):
            there = sum(getattr(answer, way) for answer in answers)
            line |= {f"{way}_per_user": there / self.people, f"{way}_per_node": there / answers[0].nodes}
        self.folder.report(line | answers[0].faults(*answers[1:]) | ({"scores": scores} if scores else {}))

    def checkpoint(self) -> None:
        """Save everything, where the settings or the end of the run ask for it."""
        last = self.stale or self.round == self.settings.rounds
        if last or self.round % self.settings.federation.checkpoint_every == 0:
            progress = {name: getattr(self, name) for name in ("best", "baselines", "seconds")}
            self.folder.save(self.round, self.strategy.state(), progress)

    def _traffic(self) -> dict[str, float]:
        """Bytes of a round, on average over the run: those that evaluate send more."""
        rounds = [line for line in read_metrics(self.folder.path) if line["kind"] == "round"]
        names = [name for name in rounds[0] if name.startswith("bytes_")] if rounds else []
        return {name: mean(line[name] for line in rounds) for name in names}

    def _areas(self) -> dict[str, float]:
        """Mean of each accuracy over the evaluations of the run (A_AUC, Koh et al. 2022)."""
        evaluated = read_scores(self.folder.path)
        groups = sorted(
            {name.removesuffix(ACCURACY) for scores in evaluated for name in scores if name.endswith(ACCURACY)}
        )
        return {
            f"{group}/auc": mean(s[group + ACCURACY] for s in evaluated if group + ACCURACY in s) for group in groups
        }

    def result(self) -> dict[str, Any]:
        """The run's figures: scores of the round that was best on validation, never chosen on test."""
        line = {
            "kind": "result",
            "name": self.settings.name,
            "seed": self.settings.seed,
            "rounds": self.round,
            "selected_round": self.best.get("round"),
            "scores": self.best.get("scores", {}) | self._areas(),
            "baselines": self.baselines,
            "seconds": self.seconds,
            **self._traffic(),
            **self.strategy.report(),
        }
        self.folder.report(line)
        return line


def _content(catalogue: Catalogue) -> dict[str, Tensor]:
    """Unit feature rows by modality, for the content baselines; missing items are zero and so rank as average."""
    tables = {}
    for name, features in catalogue.features.items():
        table = torch.from_numpy(features.standardised())
        table[~torch.from_numpy(features.present)] = 0
        tables[CONTENT + name] = torch.nn.functional.normalize(table, dim=1).half()
    return tables


def _means(sums: MetricSums) -> dict[str, float]:
    """Percentages by name ("test/all/hr@50"), and counts of users."""
    means = ranking_means(sums)
    return {name: value if name.endswith("/users") else 100 * value for name, value in means.items()}
