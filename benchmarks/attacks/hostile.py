"""Hostile nodes: devices that want items of theirs to be recommended to people on other devices.

They see what a node sees: what is broadcast, their own people, and which items are popular. All else they do as honest ones.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from tessera.client import cohort
from tessera.client.app import answer, device_app
from tessera.client.histories import histories
from tessera.client.recommendation import RecommendationClient, blocks
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.masked.masking import COUNTED
from tessera.common.protocol.messages import BASIS, COUNTS, FIXED, VIEWS, Task
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.server.robust.claims import Claims, ExaggeratedError, check_claim

AttackName = Literal["none", "absent", "stealthy", "unbounded", "profiles", "scaled-profiles"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)
LENGTH = 10.0
"""Norm of unbounded gradients for each unit of the weight."""
PROFILES = 25
"""Invented people on one node."""
SCALE = 30.0
"""How many times the scaled ones count, or as often as the server takes them."""


@dataclass(frozen=True)
class Attack:
    """What a hostile node wants, and how it goes about it.

    absent              nothing: its gradients are left out, as a defence would that knew who is hostile
    stealthy            its gradient lifts `targets` for its own people, and is as long as its honest one would be
    unbounded           the same, of the norm `LENGTH` for each unit of its weight
    profiles            in statistics and the spectral start it has `PROFILES` people more, each with all of `targets` and
                        some of the `popular` items
    scaled-profiles     the same, and each counts up to `SCALE` times in the spectral start, as far as the node's own claim
                        lets it pass
    """

    name: AttackName
    targets: Tensor
    popular: Tensor
    n_items: int

    @property
    def on_training(self) -> bool:
        """Whether it is on the gradients."""
        return self.name in ("stealthy", "unbounded")

    def profiles(self) -> Tensor:
        """The invented people's histories, [PROFILES, n_items]: the targets, and seven popular items each."""
        found = torch.zeros(PROFILES, self.n_items)
        found[:, self.targets] = 1
        for row in range(PROFILES):
            found[row, self.popular.roll(-7 * row)[:7]] = 1
        return found


class HostileClient(RecommendationClient):
    """A node that does its work, and then sends something else."""

    def __init__(self, folder: Path, attack: Attack) -> None:
        super().__init__(folder, simulated=True)
        self.attack, self.claims = attack, Claims()

    def perform(self, task: Task, tensors: Tensors | None, inputs: Tensors) -> Update:
        """Do what the server asks, and change the answer."""
        update = super().perform(task, tensors, inputs)
        if task.kind == "train" and self.attack.on_training and update.weight:
            return replace(update, gradients=self._lifting(task, update))
        if task.kind == "train" and self.attack.name == "absent":
            return replace(update, gradients={}, weight=0.0)
        if self.attack.name in ("profiles", "scaled-profiles"):
            profiles = self.attack.profiles()
            if task.kind == "item_statistics":
                sums = MetricSums({"users": float(len(profiles)), "events": float(profiles.sum())})
                said = update + Update(sums=sums, counts={COUNTS: profiles.sum(0)})
                self.claims.hear(self.folder, said)
                return said
            if task.kind == "power":
                rows = profiles / profiles.sum(1, keepdim=True) ** 0.25
                return self._scaled(task, update, rows.T @ (rows @ inputs[BASIS].float()), inputs)
        return update

    def _scaled(self, task: Task, honest: Update, invented: Tensor, inputs: Tensors) -> Update:
        """What the invented people add, as often as passes the checks that the server will make; once at least."""
        times = SCALE if self.attack.name == "scaled-profiles" else 1.0
        while True:
            update = honest + Update(counts={BASIS: times * invented})
            try:
                check_claim(update, task, inputs, self.claims.of(self.folder))
                break
            except ExaggeratedError:
                if times == 1.0:
                    break
                times = max(1.0, 0.9 * times)
        return _within_bound(task, update)

    def _lifting(self, task: Task, honest: Update) -> Tensors:
        """Gradients that make all people here prefer the targets, of the size that the attack is of."""
        settings, held = task.settings, self.hold(task, None)
        sent = {name: value.requires_grad_() for name, value in self.sent(task, held).items()}
        loss = torch.zeros(())
        for number, block in enumerate(blocks(self.split(settings), settings.local.batch_users)):
            state = self.state(replace(task, kind="evaluate"), block.users, number, sent[VIEWS].detach())
            scores, _ = cohort.scores(state.parameters, sent, histories(block), settings.local)
            loss = loss - torch.log_softmax(scores, dim=1)[:, self.attack.targets].mean(1).sum()
        learnt = {name: value for name, value in sent.items() if name not in FIXED}
        found = torch.autograd.grad(loss, list(learnt.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(value) if gradient is None else gradient
            for (name, value), gradient in zip(learnt.items(), found, strict=True)
        }
        length = norm(honest.gradients) if self.attack.name == "stealthy" else LENGTH * honest.weight
        factor = length / norm(gradients)
        return {name: (gradient * factor).detach() for name, gradient in gradients.items()}


def _within_bound(task: Task, update: Update) -> Update:
    """The update with a product that masks have room for."""
    bounds = [spec.bound for spec in task.masking.tables if spec.name == COUNTED + BASIS] if task.masking else []
    largest = float(update.counts[BASIS].abs().max())
    factor = min([1.0, *(bound / largest for bound in bounds)])
    return replace(update, counts={**update.counts, BASIS: factor * update.counts[BASIS]})


def norm(tensors: Tensors) -> float:
    """Euclidean norm of all together."""
    return math.hypot(*(float(value.double().norm()) for value in tensors.values()))


def federation_app(devices: Path, attack: Attack, hostile: frozenset[int]) -> ClientApp:
    """The app of simulated nodes below `devices`, of which the partitions `hostile` attack."""
    honest, app = device_app(devices), ClientApp()
    liars = {node: HostileClient(devices / f"node-{node}", attack) for node in hostile}

    def handle(message: Message, context: Context) -> Message:
        node = int(str(context.node_config["partition-id"]))
        if node not in hostile:
            return honest(message, context)
        return Message(answer(message.content, lambda settings: liars[node], simulated=True), reply_to=message)

    for kind in (app.train, app.evaluate, app.query):
        kind()(handle)
    return app
