"""Trains all users of a node at once, each on their own parameters.

Private tensors are stacked over users, [n_users, ...]. Users never mix: user u's loss depends on row u of the private state
alone, so one backward pass gives every user's own gradients, and their weighted sum for what was sent.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor

from tessera.client import optimizers
from tessera.client.aspects.cohesion import prior
from tessera.client.aspects.facets import gates
from tessera.client.aspects.groups import GROUP, GroupMaps, chosen
from tessera.client.backbones import BackboneInput, Comparison, LazyScores, make_backbone
from tessera.client.histories import Histories
from tessera.client.losses import find_loss
from tessera.client.per_person.gradients import PersonGradients, PersonUpdates
from tessera.client.per_person.meeting import adding_up, noting
from tessera.client.private_state import PrivateState
from tessera.client.router import Routed, pool, route, router_shapes, side_by_side
from tessera.common.config.settings import LocalSettings
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.messages import BLOCKS, COHESION, FIXED, GROUP_CENTRES, GROUP_MAPS, VIEWS
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update
from tessera.common.registry.losses import NextItemSettings
from tessera.common.utils import counter_rng
from tessera.common.utils.computing.precision import products, resolved


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
    moments = optimizers.start(settings, parameters)
    if settings.groups.count:
        parameters[GROUP] = views.new_full((len(users), 1), -1.0)
    return PrivateState(users, parameters, moments)


def grown(kept: PrivateState, settings: LocalSettings, views: Tensor, seed: int) -> PrivateState:
    """Private state with rows for the items that the catalogue has got since, as a fresh start has them: of the tensors that
    have a row for each item. Others stay as they are, whether they fit or not."""
    if kept.shapes() == start_state(kept.users[:1], settings, views, seed).shapes():
        return kept
    (n_items, dim), backbone = views.shape[1:], make_backbone(settings.backbone)
    more = backbone.parameters(dim, n_items + 1)
    by_item = [name for name, one in backbone.parameters(dim, n_items).items() if one.shape != more[name].shape]
    by_item += [f"{moment}.{name}" for moment in optimizers.MOMENTS for name in by_item]
    fresh = start_state(kept.users, settings, views, seed)

    def longer(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: torch.cat([value, others[name][:, value.shape[1] :]], 1)
            if name in by_item and name in others
            else value
            for name, value in tensors.items()
        }

    return PrivateState(kept.users, longer(kept.parameters, fresh.parameters), longer(kept.optimizer, fresh.optimizer))


def routed(private: dict[str, Tensor], sent: Tensors, histories: Histories, settings: LocalSettings) -> BackboneInput:
    """Route the views by the users' histories, and solve for what has a closed form: what every backbone computes from."""
    views, backbone, histories = sent[VIEWS], make_backbone(settings.backbone), histories.aged(settings.recency)
    if settings.route == "uniform" or len(views) == 1:
        weights = views.new_full((len(histories), len(views)), 1 / len(views))
    else:
        known = (
            settings.prior * prior(histories, views, sent[COHESION]) if settings.prior and COHESION in sent else None
        )
        weights = route(private, pool(histories, views), known)
    gated = None
    if settings.gate != "none" and BLOCKS in sent:
        gated = gates(histories, sent, sent[BLOCKS], settings.gate, settings.gate_sharpness)
    maps = _maps(private, sent, histories, settings) if settings.groups.count else None
    everything = BackboneInput(private, sent, histories, Routed(views, weights, gated, maps))
    with torch.no_grad():
        solved = backbone.solved(everything)
    return replace(everything, private=private | solved)


def _maps(private: dict[str, Tensor], sent: Tensors, histories: Histories, settings: LocalSettings) -> GroupMaps | None:
    """The maps of users' groups. Who has none, once people are divided, is in the one that the history says."""
    if GROUP_MAPS not in sent:
        return None
    groups = private[GROUP][:, 0].detach().long()
    if GROUP_CENTRES in sent and settings.groups.by != "given" and bool((groups < 0).any()):
        groups = torch.where(groups < 0, chosen(histories, sent, settings.groups), groups)
    return GroupMaps(sent[GROUP_MAPS], groups, settings.groups.count)


def scores(
    private: dict[str, Tensor], sent: Tensors, histories: Histories, settings: LocalSettings
) -> tuple[Tensor, Tensor]:
    """Score the catalogue for every user, [n_users, n_items], and say how the views were weighed, [n_users, n_views]."""
    everything = routed(private, sent, histories, settings)
    return make_backbone(settings.backbone).scores(everything), everything.routed.weights


def compare(private: dict[str, Tensor], sent: Tensors, histories: Histories, settings: LocalSettings) -> Comparison:
    """What the views say of histories and items together and alone, for backbones that can tell."""
    return make_backbone(settings.backbone).comparison(routed(private, sent, histories, settings))


def train(
    state: PrivateState, sent: Tensors, histories: Histories, settings: LocalSettings, seed: int, round: int
) -> tuple[PrivateState, Update]:
    """Run the local epochs of one round for all users (FedVLR Alg. 1, PersonalizedRefinement).

    Private parameters move, what was sent does not; the gradients of the loss with respect to it add up over the epochs.
    An epoch is one step on all of a user's events. Returns the moved state and the cohort's additive update.
    """
    step = Step(sent, histories, settings, round)
    moved, gradients, sums = _epochs(step, step.gradients, state, seed)
    return moved, Update(gradients, float(step.weight.double().sum()), sums)


def train_apart(
    state: PrivateState, sent: Tensors, histories: Histories, settings: LocalSettings, seed: int, round: int
) -> tuple[PrivateState, PersonUpdates]:
    """The same, with each user's gradients apart. Raises `NotApart` for a backbone whose gradients cannot be told apart."""
    step = Step(sent, histories, settings, round)
    moved, gradients, sums = _epochs(step, step.gradients_apart, state, seed)
    rest = Update(weight=float(step.weight.double().sum()), sums=sums)
    return moved, PersonUpdates(gradients, rest, torch.ones_like(step.weight))


class NotApart(Exception):
    """What was sent is used otherwise than by the operations that tell people's gradients apart."""


G = TypeVar("G", Tensor, PersonGradients)
Gradients = Callable[[dict[str, Tensor], int], tuple[Tensor, dict[str, Tensor], dict[str, G]]]
"""From private parameters and a salt: each user's loss, their own gradients, and those of what was sent."""


def _epochs(
    step: "Step", gradients: Gradients[G], state: PrivateState, seed: int
) -> tuple[PrivateState, dict[str, G], MetricSums]:
    """The local epochs: the moved state, the gradients of what was sent added up, and the sums of the last losses."""
    parameters, moments = step.restarted(state)
    total: dict[str, G] = {}
    losses = torch.zeros(0)
    for epoch in range(step.settings.local_epochs):
        salt = counter_rng.key("epoch", seed, step.round, epoch)
        for names in step.backbone.phases([name for name in parameters if name != GROUP]):
            losses, own, found = gradients(parameters, salt)
            parameters, moments = optimizers.step(step.settings, parameters, own, moments, names)
        total = {name: total[name] + gradient if total else gradient for name, gradient in found.items()}
    sums = {
        "users": float(len(step.histories)),
        "loss": float(losses.double().sum()),
        "nonfinite": float((~torch.isfinite(losses)).sum()),
    }
    return PrivateState(state.users, parameters, moments), total, MetricSums(sums)


class Step:
    """One forward and one backward pass of a cohort, on what does not change within a round.

    Gradients are of what was `sent`, but for what is `fixed` of it, which nobody learns.
    """

    def __init__(self, sent: Tensors, histories: Histories, settings: LocalSettings, round: int) -> None:
        self.histories, self.settings, self.round = histories, settings, round
        self.fixed = {name: value for name, value in sent.items() if name in FIXED}
        self.sent = {name: value for name, value in sent.items() if name not in self.fixed}
        self.sent[VIEWS] = side_by_side(self.sent[VIEWS])
        self.precision = resolved(settings.precision, sent[VIEWS].device.type)
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
        private, received = _leaves(parameters), _leaves(self.sent)
        total = {name: torch.zeros_like(value) for name, value in self.sent.items()}
        with products(self.precision), adding_up(received) as notes:
            losses = self._losses(private, received, salt)
            leaves = [*private.values(), *received.values()]
            found = self._backward(losses, [*leaves, *notes.outputs])
            notes.add(found[len(leaves) :], total)
        for name, gradient in zip(received, found[len(private) :], strict=False):
            if gradient is not None:
                total[name].add_(gradient)
        return losses.detach(), self._own(private, found), total

    def gradients_apart(
        self, parameters: dict[str, Tensor], salt: int
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, PersonGradients]]:
        """The same, with each user's weighted gradients of what was sent by themselves."""
        private, received = _leaves(parameters), _leaves(self.sent)
        leaves = [*private.values(), *received.values()]
        with products(self.precision), noting(received) as notes:
            losses = self._losses(private, received, salt)
            found = self._backward(losses, [*leaves, *notes.outputs])
        for name, gradient in zip(received, found[len(private) :], strict=False):
            if gradient is not None:
                raise NotApart(f"backbone {self.settings.backbone.name} reads {name} in a way of its own")
        people = len(self.histories)
        apart = {name: PersonGradients(people, value.shape) for name, value in received.items()}
        for name, term in notes.terms(found[len(leaves) :]):
            apart[name] += PersonGradients(people, received[name].shape, (term,))
        return losses.detach(), self._own(private, found), apart

    def _backward(self, losses: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
        """Gradients of the weighted sum of the losses; None for what they do not depend on."""
        return torch.autograd.grad((self.weight * losses).sum(), leaves, allow_unused=True)

    def _own(self, private: Tensors, found: Sequence[Tensor | None]) -> dict[str, Tensor]:
        """The users' own gradients. The weight is a user's say in the sum, not in their own step: it is divided out again."""
        return {
            name: torch.zeros_like(leaf) if g is None else g / self.weight.view(-1, *[1] * (g.ndim - 1))
            for (name, leaf), g in zip(private.items(), found, strict=False)
        }

    def _losses(self, private: dict[str, Tensor], received: Tensors, salt: int) -> Tensor:
        """Each user's loss, [n_users]. Asked for the next event, a user counts as one person at each cut of the history."""
        known, asked, cuts, own = self.histories, self.histories, 1, self.settings.loss
        if isinstance(own, NextItemSettings):
            cuts = own.next_item_samples
            known, asked = self.histories.cuts(cuts, salt, self.backbone.window)
            private = {name: value.repeat_interleave(cuts, dim=0) for name, value in private.items()}
        shown = known.hidden(self.settings.history_mask, salt)
        everything = replace(routed(private, {**received, **self.fixed}, shown, self.settings), salt=salt)
        losses = find_loss(own)(LazyScores(self.backbone, everything), asked, own, salt)
        losses = losses + self.backbone.penalty(everything, self.round)
        return losses.view(-1, cuts).mean(1)


def _user_weights(histories: Histories, settings: LocalSettings, dtype: torch.dtype) -> Tensor:
    """alpha_u before normalisation, [n_users], all positive."""
    lengths = histories.lengths().clamp(min=1).to(dtype)
    return lengths if settings.weighting == "examples" else torch.ones_like(lengths)


def _leaves(tensors: Tensors) -> dict[str, Tensor]:
    """The same numbers, as that with respect to which gradients are asked."""
    return {name: value.detach().requires_grad_() for name, value in tensors.items()}
