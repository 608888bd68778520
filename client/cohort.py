"""The users of a node trained at once, each on their own parameters.

Private tensors are stacked over users, [n_users, ...]. Users never mix: user u's loss depends on row u of the private state
alone, so one backward pass gives every user's own gradients, and their weighted sum for what was sent.
"""

import torch
from torch import Tensor

from client import optimizers
from client.backbones import BACKBONES
from client.histories import Histories
from client.losses import LOSSES
from client.router import Routed, pool, route, router_shapes
from client.store import PrivateState
from common import seeds
from common.config import LocalSettings
from common.metrics import Sums
from common.protocol import VIEWS, Tensors, Update


def start_state(users: tuple[str, ...], settings: LocalSettings, views: Tensor, seed: int) -> PrivateState:
    """Build the private state of users who never trained: each draws from (seed, user), whoever else is in the cohort."""
    n_views, _, dim = views.shape
    keys = seeds.user_keys(users)
    parameters = {name: torch.zeros(len(users), *shape) for name, shape in router_shapes(n_views, dim).items()}
    for name, parameter in BACKBONES[settings.backbone].parameters(dim).items():
        position = torch.arange(int(torch.Size(parameter.shape).numel()))
        draws = seeds.normal(seeds.key("start", seed, name), keys[:, None], position)
        parameters[name] = parameter.scale * draws.view(len(users), *parameter.shape)
    parameters = {name: value.to(views.dtype) for name, value in parameters.items()}
    return PrivateState(users, parameters, optimizers.start(settings, parameters))


def scores(
    private: dict[str, Tensor], sent: Tensors, histories: Histories, settings: LocalSettings
) -> tuple[Tensor, Tensor]:
    """Score the catalogue for every user, [n_users, n_items], and say how the views were weighed, [n_users, n_views]."""
    views = sent[VIEWS]
    if settings.route == "uniform" or len(views) == 1:
        weights = views.new_full((len(histories), len(views)), 1 / len(views))
    else:
        weights = route(private, pool(histories, views))
    return BACKBONES[settings.backbone].scores(private, sent, histories, Routed(views, weights)), weights


def train(
    state: PrivateState, sent: Tensors, histories: Histories, settings: LocalSettings, seed: int, round: int
) -> tuple[PrivateState, Update]:
    """Run the local epochs of one round for all users (FedVLR Alg. 1, PersonalizedRefinement).

    Private parameters move, what was sent does not; the gradients of the loss with respect to it add up over the epochs.
    An epoch is one step on all of a user's events. Returns the moved state and the cohort's additive update.
    """
    weight = _user_weights(histories, settings, next(iter(sent.values())).dtype)
    parameters, moments = state.parameters, state.optimizer
    gradients = {name: torch.zeros_like(value) for name, value in sent.items()}
    losses = torch.zeros(0)
    for epoch in range(settings.local_epochs):
        losses, private_gradients, sent_gradients = _gradients(
            parameters, sent, histories, settings, weight, seeds.key("epoch", seed, round, epoch)
        )
        parameters, moments = optimizers.step(settings, parameters, private_gradients, moments)
        for name, gradient in sent_gradients.items():
            gradients[name] += gradient
    sums = {
        "users": float(len(histories)),
        "loss": float(losses.double().sum()),
        "nonfinite": float((~torch.isfinite(losses)).sum()),
    }
    update = Update(gradients, float(weight.double().sum()), Sums(sums))
    return PrivateState(state.users, parameters, moments), update


def _gradients(
    parameters: dict[str, Tensor],
    sent: Tensors,
    histories: Histories,
    settings: LocalSettings,
    weight: Tensor,
    salt: int,
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """One forward and one backward pass: each user's loss, their own gradients, and the weighted sum for what was sent."""
    private = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    received = {name: value.detach().requires_grad_() for name, value in sent.items()}
    shown = histories.hidden(settings.history_mask, salt)
    predicted, _ = scores(private, received, shown, settings)
    losses = LOSSES[settings.loss](predicted, histories, settings, salt)
    leaves = [*private.values(), *received.values()]
    found = torch.autograd.grad((weight * losses).sum(), leaves, allow_unused=True)
    dense = [
        torch.zeros_like(leaf) if gradient is None else gradient for leaf, gradient in zip(leaves, found, strict=True)
    ]
    # The weight is the user's say in the sum, not in their own step: divide it out again, row by row.
    own = {name: g / weight.view(-1, *[1] * (g.ndim - 1)) for name, g in zip(private, dense, strict=False)}
    return losses.detach(), own, dict(zip(received, dense[len(private) :], strict=True))


def _user_weights(histories: Histories, settings: LocalSettings, dtype: torch.dtype) -> Tensor:
    """alpha_u before normalisation, [n_users], all positive."""
    lengths = histories.lengths().clamp(min=1).to(dtype)
    return lengths if settings.weighting == "examples" else torch.ones_like(lengths)
