"""Local optimisers over stacked private parameters: row u of every tensor steps as user u's own optimiser would.

Their moments are private state like the parameters, and steps are counted per user, since users may take part in
different rounds.
"""

from torch import Tensor

from common.config import LocalSettings

BETAS, EPSILON = (0.9, 0.999), 1e-8
STEPS = "steps"

Stacked = dict[str, Tensor]


def start(settings: LocalSettings, parameters: Stacked) -> Stacked:
    """Build the moments of users who never took a step."""
    if settings.optimizer == "sgd":
        return {}
    some = next(iter(parameters.values()))
    moments = {
        f"{moment}.{name}": tensor.new_zeros(tensor.shape)
        for name, tensor in parameters.items()
        for moment in ("mean", "square")
    }
    return {STEPS: some.new_zeros(len(some)), **moments}


def step(
    settings: LocalSettings, parameters: Stacked, gradients: Stacked, moments: Stacked, names: list[str] | None = None
) -> tuple[Stacked, Stacked]:
    """Take one step of SGD, or of Adam with decoupled weight decay (Loshchilov & Hutter 2019), and return new tensors.

    With `names` only those parameters step. Users' steps are counted with each call that moves their first parameter.
    """
    chosen = {name: value for name, value in parameters.items() if names is None or name in names}
    rate, decay = settings.learning_rate, 1 - settings.learning_rate * settings.weight_decay
    if settings.optimizer == "sgd":
        return parameters | {name: decay * value - rate * gradients[name] for name, value in chosen.items()}, moments
    steps = moments[STEPS] + (next(iter(parameters)) in chosen)
    first, second = rate / (1 - BETAS[0] ** steps), (1 - BETAS[1] ** steps).rsqrt()
    stepped, moved = dict(parameters), {**moments, STEPS: steps}
    for name, value in chosen.items():
        gradient, rows = gradients[name], (-1, *[1] * (value.ndim - 1))
        mean = moments[f"mean.{name}"].lerp(gradient, 1 - BETAS[0])
        square = moments[f"square.{name}"].lerp(gradient * gradient, 1 - BETAS[1])
        size = (square.sqrt() * second.view(rows)).add_(EPSILON)
        stepped[name] = (value if decay == 1 else value * decay).addcdiv(mean * first.view(rows), size, value=-1)
        moved[f"mean.{name}"], moved[f"square.{name}"] = mean, square
    return stepped, moved
