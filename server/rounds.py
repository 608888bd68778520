"""The round loop: broadcast, gather, step, evaluate, checkpoint."""

import time
from typing import Any

import torch
from torch import Tensor

from common.catalogue import Catalogue
from common.config import Settings
from common.errors import RunError
from common.metrics import Sums, ranking_means
from common.protocol import BASIS, CONTENT, COUNTS, Kind, Task, Tensors, Update, content_hash
from server.checkpoint import RunFolder
from server.nodes import Answer, Nodes
from server.spectral import leading_vectors
from server.strategies.fedvlr import FedVLR


def run_rounds(
    nodes: Nodes, strategy: FedVLR, settings: Settings, catalogue: Catalogue, folder: RunFolder
) -> dict[str, Any]:
    """Train from the last checkpoint, or from the start, to the end, and return the run's result."""
    run = Run(nodes, strategy, settings, folder)
    run.restore()
    nodes.wait()
    facts = run.census(catalogue)
    run.spectral_start(len(catalogue))
    for round in range(run.round + 1, settings.rounds + 1):
        # 1. Build the views from the catalogue and what is learnt so far. 2. Broadcast them; nodes that hold them get a hash.
        # 3. The nodes train their people and return gradients. 4. Their updates are added up as they arrive.
        answer = run.ask("train", round)
        # 5. One vector-Jacobian product takes the sum to all parameters; one step.
        run.check_loss(answer.update, round)
        strategy.absorb(answer.update)
        run.round = round
        # 6. Every few rounds the devices evaluate what they now have, and return sums.
        due = round % settings.evaluation.every == 0 or round == settings.rounds
        evaluation, scores = run.evaluate(facts) if due else (None, {})
        # 7. Checkpoint and report; stop early when validation has not got better for long.
        run.report(answer, evaluation, scores)
        run.checkpoint(last=round == settings.rounds or run.stale)
        if run.stale:
            break
    return run.result()


class Run:
    """What the round loop carries from round to round, all of it in every checkpoint."""

    def __init__(self, nodes: Nodes, strategy: FedVLR, settings: Settings, folder: RunFolder) -> None:
        self.nodes, self.strategy, self.settings, self.folder = nodes, strategy, settings, folder
        self.round = 0
        self.best: dict[str, Any] = {}
        self.baselines: dict[str, float] = {}
        self.seconds = 0.0
        self.traffic: dict[str, float] = {}
        self._since = time.monotonic()

    def restore(self) -> None:
        """Take up the newest checkpoint, if there is one."""
        if found := self.folder.load():
            self.round, progress, tensors = found
            self.best, self.baselines, self.seconds = progress["best"], progress["baselines"], progress["seconds"]
            self.strategy.restore(tensors)
        self._since = time.monotonic()

    def ask(self, kind: Kind, round: int, facts: Tensors | None = None) -> Answer:
        """Give all nodes a task on the current views."""
        tensors = self.strategy.broadcast() if kind in ("train", "evaluate") else None
        name = content_hash(tensors) if tensors else ""
        task = Task(kind, self.folder.run, round, self.folder.durable(), self.strategy.views, self.settings, name)
        return self.nodes.ask(task, tensors, facts)

    def census(self, catalogue: Catalogue) -> Tensors:
        """Ask how often each item occurs in training, and evaluate the baselines once; return the counts."""
        started = time.monotonic()
        answer = self.ask("census", self.round)
        counts = {COUNTS: answer.update.counts[COUNTS]}
        if len(counts[COUNTS]) != len(catalogue):
            raise RunError(
                f"the devices have {len(counts[COUNTS])} items, the server's catalogue {len(catalogue)}; use one dataset"
            )
        if self.settings.evaluation.baselines and not self.baselines:
            self.baselines = _means(self.ask("baselines", self.round, counts | _content(catalogue)).update.sums)
        line = {"kind": "census", "round": 0, **dict(answer.update.sums.values), "nodes": answer.nodes}
        if not self.round:
            self.folder.report(line | {"baselines": self.baselines, "seconds": time.monotonic() - started})
        self._since = time.monotonic()
        return counts

    def spectral_start(self, n_items: int) -> None:
        """Before the first round, where the settings ask for it: a few additive rounds that find the embeddings' start."""
        views = self.settings.views
        if self.round or not views.spectral_rounds:
            return
        product = lambda basis: self.ask("power", 0, {BASIS: basis}).update.counts[BASIS]  # noqa: E731
        rank = min(views.dim, views.id_dim, n_items)
        vectors, values = leading_vectors(product, n_items, rank, views.spectral_rounds, self.settings.seed)
        self.strategy.start_from(vectors, values)
        self._since = time.monotonic()

    def check_loss(self, update: Update, round: int) -> None:
        """Raise `RunError` when users' losses are not finite: how many, not whose."""
        if bad := int(update.sums["nonfinite"]):
            raise RunError(
                f"round {round}: the loss of {bad} of {int(update.sums['users'])} users is not finite; lower the learning rates"
            )

    def evaluate(self, facts: Tensors) -> tuple[Answer, dict[str, float]]:
        """Have the devices rank the catalogue. Raises `RunError` when scores are constant or not finite."""
        answer = self.ask("evaluate", self.round, facts)
        sums = answer.update.sums
        for what, remedy in (
            ("nonfinite", "lower the learning rates"),
            ("constant", "nothing was learnt: check losses and rates"),
        ):
            if bad := int(sums[what]):
                word = "not finite" if what == "nonfinite" else "all the same"
                raise RunError(
                    f"round {self.round}: the scores of {bad} of {int(sums['evaluated'])} users are {word}; {remedy}"
                )
        scores = _means(Sums({name: value for name, value in sums.values.items() if "/" in name}))
        if scores.get(self._criterion, 0.0) > self.best.get("criterion", -1.0):
            self.best = {"round": self.round, "criterion": scores.get(self._criterion, 0.0), "scores": scores}
        return answer, scores

    @property
    def stale(self) -> bool:
        """Whether the last evaluations, as many as the patience allows, brought nothing better on validation."""
        patience = self.settings.evaluation.patience * self.settings.evaluation.every
        return bool(patience and self.best and self.round - self.best["round"] >= patience)

    def report(self, training: Answer, evaluation: Answer | None, scores: dict[str, float]) -> None:
        """Append the round's line to the metrics; bytes are those of its training and its evaluation, for one node."""
        now = time.monotonic()
        self.seconds, took, self._since = self.seconds + now - self._since, now - self._since, now
        sums, answers = training.update.sums, [training, *([evaluation] if evaluation else [])]
        self.traffic = {
            "bytes_down_per_node": sum(answer.bytes_down / answer.nodes for answer in answers),
            "bytes_up_per_node": sum(answer.bytes_up / answer.nodes for answer in answers),
        }
        line = {
            "kind": "round",
            "round": self.round,
            "loss": sums.mean("loss", "users"),
            "users": int(sums["users"]),
            "nodes": training.nodes,
            "seconds": took,
            **self.traffic,
        }
        self.folder.report(line | ({"scores": scores} if scores else {}))

    def checkpoint(self, last: bool) -> None:
        """Save everything, where the settings or the end of the run ask for it."""
        if last or self.round % self.settings.federation.checkpoint_every == 0:
            progress = {"best": self.best, "baselines": self.baselines, "seconds": self.seconds}
            self.folder.save(self.round, self.strategy.state(), progress)

    def result(self) -> dict[str, Any]:
        """The run's figures: scores of the round that was best on validation, never chosen on test."""
        line = {
            "kind": "result",
            "name": self.settings.name,
            "seed": self.settings.seed,
            "rounds": self.round,
            "selected_round": self.best.get("round"),
            "scores": self.best.get("scores", {}),
            "baselines": self.baselines,
            "seconds": self.seconds,
            **self.traffic,
        }
        self.folder.report(line)
        return line

    @property
    def _criterion(self) -> str:
        return f"validation/all/ndcg@{max(self.settings.evaluation.ks)}"


def _content(catalogue: Catalogue) -> dict[str, Tensor]:
    """Unit feature rows by modality, for the content baselines; missing items are zero and so rank as average."""
    tables = {}
    for name, features in catalogue.features.items():
        table = torch.from_numpy(features.standardised())
        table[~torch.from_numpy(features.present)] = 0
        tables[CONTENT + name] = torch.nn.functional.normalize(table, dim=1).half()
    return tables


def _means(sums: Sums) -> dict[str, float]:
    """Percentages by name ("test/all/hr@50"), and counts of users."""
    means = ranking_means(sums)
    return {name: value if name.endswith("/users") else 100 * value for name, value in means.items()}
