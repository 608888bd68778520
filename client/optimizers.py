"""Steps all users' private parameters at once: row u of every tensor as user u's own optimiser would.

Their moments are private state like the parameters, and steps are counted per user, since users may take part in
different rounds.
"""

import torch
from torch import Tensor

from tessera.common.config.settings import LocalSettings

BETAS, EPSILON = (0.9, 0.999), 1e-8
STEPS, MOMENTS = "steps", ("mean", "square")

Stacked = dict[str, Tensor]


def start(settings: LocalSettings, parameters: Stacked) -> Stacked:
    """Build the moments of users who never took a step; steps [n_users] are counted for each parameter."""
    if settings.optimizer == "sgd":
        return {}
    moments = {f"{moment}.{name}": torch.zeros_like(value) for moment in MOMENTS for name, value in parameters.items()}
    return moments | {f"{STEPS}.{name}": value.new_zeros(len(value)) for name, value in parameters.items()}


def step(
    settings: LocalSettings, parameters: Stacked, gradients: Stacked, moments: Stacked, names: list[str] | None = None
) -> tuple[Stacked, Stacked]:
    """Take one step of SGD, or of Adam with decoupled weight decay (Loshchilov & Hutter 2019), and return new tensors.

    With `names` only those parameters step.
    """
    chosen = {name: value for name, value in parameters.items() if names is None or name in names}
    rate, decay = settings.learning_rate, 1 - settings.learning_rate * settings.weight_decay
    if settings.optimizer == "sgd":
        start = {name: value if decay == 1 else decay * value for name, value in chosen.items()}
        return parameters | {name: start[name].add(gradients[name], alpha=-rate) for name in chosen}, moments
    stepped, moved = dict(parameters), dict(moments)
    for name, value in chosen.items():
        gradient, rows = gradients[name], (-1, *[1] * (value.ndim - 1))
        steps = moments[f"{STEPS}.{name}"] + 1
        mean = moments[f"mean.{name}"].lerp(gradient, 1 - BETAS[0])
        square = moments[f"square.{name}"].lerp(gradient * gradient, 1 - BETAS[1])
        size = (square.sqrt() * (1 - BETAS[1] ** steps).rsqrt().view(rows)).add_(EPSILON)
        first = mean * (rate / (1 - BETAS[0] ** steps)).view(rows)
        stepped[name] = (value if decay == 1 else value * decay).addcdiv(first, size, value=-1)
        moved |= {f"{STEPS}.{name}": steps, f"mean.{name}": mean, f"square.{name}": square}
    return stepped, moved
