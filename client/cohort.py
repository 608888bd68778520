"""Trains all users of a node at once, each on their own parameters.

Private tensors are stacked over users, [n_users, ...]. Users never mix: user u's loss depends on row u of the private state
alone, so one backward pass gives every user's own gradients, and their weighted sum for what was sent.
"""

from dataclasses import replace

import torch
from torch import Tensor

from tessera.client import optimizers
from tessera.client.backbones import BackboneInput, LazyScores, make_backbone
from tessera.client.histories import Histories
from tessera.client.losses import find_loss
from tessera.client.private_state import PrivateState
from tessera.client.router import Routed, pool, route, router_shapes
from tessera.common.config.settings import LocalSettings
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.messages import VIEWS
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.registry.losses import NextItemSettings
from tessera.common.utils import counter_rng


def start_state(users: tuple[str, ...], settings: LocalSettings, views: Tensor, seed: int) -> PrivateState:
    """Build the private state of users who never trained: each draws from (seed, user), whoever else is in the cohort."""
    n_views, n_items, dim = views.shape
    keys = counter_rng.user_keys(users)
    parameters = {name: torch.zeros(len(users), *shape) for name, shape in router_shapes(n_views, dim).items()}
    for name, parameter in make_backbone(settings.backbone).parameters(dim, n_items).items():
        parameters[name] = torch.zeros(len(users), *parameter.shape)
        if parameter.scale:
            position = torch.arange(parameters[name][0].numel())
            draws = counter_rng.normal(counter_rng.key("start", seed, name), keys[:, None], position)
            parameters[name] = parameter.scale * draws.view(len(users), *parameter.shape)
    parameters = {name: value.to(views.dtype) for name, value in parameters.items()}
    return PrivateState(users, parameters, optimizers.start(settings, parameters))


def routed(private: dict[str, Tensor], sent: Tensors, histories: Histories, settings: LocalSettings) -> BackboneInput:
    """Route the views by the users' histories, and solve for what has a closed form: what every backbone computes from."""
    views, backbone, histories = sent[VIEWS], make_backbone(settings.backbone), histories.aged(settings.recency)
    if settings.route == "uniform" or len(views) == 1:
        weights = views.new_full((len(histories), len(views)), 1 / len(views))
    else:
        weights = route(private, pool(histories, views))
    everything = BackboneInput(private, sent, histories, Routed(views, weights))
    with torch.no_grad():
        solved = backbone.solved(everything)
    return replace(everything, private=private | solved)


def scores(
    private: dict[str, Tensor], sent: Tensors, histories: Histories, settings: LocalSettings
) -> tuple[Tensor, Tensor]:
    """Score the catalogue for every user, [n_users, n_items], and say how the views were weighed, [n_users, n_views]."""
    everything = routed(private, sent, histories, settings)
    return make_backbone(settings.backbone).scores(everything), everything.routed.weights


def train(
    state: PrivateState, sent: Tensors, histories: Histories, settings: LocalSettings, seed: int, round: int
) -> tuple[PrivateState, Update]:
    """Run the local epochs of one round for all users (FedVLR Alg. 1, PersonalizedRefinement).

    Private parameters move, what was sent does not; the gradients of the loss with respect to it add up over the epochs.
    An epoch is one step on all of a user's events. Returns the moved state and the cohort's additive update.
    """
    step = Step(sent, histories, settings, round)
    parameters, moments = step.restarted(state)
    gradients = {name: torch.zeros_like(value) for name, value in sent.items()}
    losses = torch.zeros(0)
    for epoch in range(settings.local_epochs):
        salt = counter_rng.key("epoch", seed, round, epoch)
        for names in step.backbone.phases(list(parameters)):
            losses, own, sent_gradients = step.gradients(parameters, salt)
            parameters, moments = optimizers.step(settings, parameters, own, moments, names)
        for name, gradient in sent_gradients.items():
            gradients[name] += gradient
    sums = {
        "users": float(len(histories)),
        "loss": float(losses.double().sum()),
        "nonfinite": float((~torch.isfinite(losses)).sum()),
    }
    update = Update(gradients, float(step.weight.double().sum()), MetricSums(sums))
    return PrivateState(state.users, parameters, moments), update


class Step:
    """One forward and one backward pass of a cohort, on what does not change within a round."""

    def __init__(self, sent: Tensors, histories: Histories, settings: LocalSettings, round: int) -> None:
        self.sent, self.histories, self.settings, self.round = sent, histories, settings, round
        self.backbone = make_backbone(settings.backbone)
        self.weight = _user_weights(histories, settings, sent[VIEWS].dtype)

    def restarted(self, state: PrivateState) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Parameters and moments at the start of the round: what does not outlive a round is zero again."""
        _, n_items, dim = self.sent[VIEWS].shape
        gone = {name for name, one in self.backbone.parameters(dim, n_items).items() if not one.kept}

        def fresh(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {
                name: torch.zeros_like(value) if name.split(".")[-1] in gone else value
                for name, value in tensors.items()
            }

        return fresh(state.parameters), fresh(state.optimizer)

    def gradients(
        self, parameters: dict[str, Tensor], salt: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Each user's loss, their own gradients, and the weighted sum for what was sent."""
        private = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        received = {name: value.detach().requires_grad_() for name, value in self.sent.items()}
        losses = self._losses(private, received, salt)
        leaves = [*private.values(), *received.values()]
        found = torch.autograd.grad((self.weight * losses).sum(), leaves, allow_unused=True)
        dense = [torch.zeros_like(leaf) if g is None else g for leaf, g in zip(leaves, found, strict=True)]
        # The weight is the user's say in the sum, not in their own step: divide it out again, row by row.
        own = {name: g / self.weight.view(-1, *[1] * (g.ndim - 1)) for name, g in zip(private, dense, strict=False)}
        sent_gradients = dict(zip(received, dense[len(private) :], strict=True))
        return losses.detach(), own, sent_gradients

    def _losses(self, private: dict[str, Tensor], received: Tensors, salt: int) -> Tensor:
        """Each user's loss, [n_users]. Asked for the next event, a user counts as one person at each cut of the history."""
        known, asked, cuts, own = self.histories, self.histories, 1, self.settings.loss
        if isinstance(own, NextItemSettings):
            cuts = own.next_item_samples
            known, asked = self.histories.cuts(cuts, salt)
            private = {name: value.repeat_interleave(cuts, dim=0) for name, value in private.items()}
        everything = routed(private, received, known.hidden(self.settings.history_mask, salt), self.settings)
        losses = find_loss(own)(LazyScores(self.backbone, everything), asked, own, salt)
        losses = losses + self.backbone.penalty(everything, self.round)
        return losses.view(-1, cuts).mean(1)


def _user_weights(histories: Histories, settings: LocalSettings, dtype: torch.dtype) -> Tensor:
    """alpha_u before normalisation, [n_users], all positive."""
    lengths = histories.lengths().clamp(min=1).to(dtype)
    return lengths if settings.weighting == "examples" else torch.ones_like(lengths)
