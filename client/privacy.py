"""Clips and noises what people upload: nobody's part in a round's sum can be large, and none is exact.

A person's upload is the gradient of everything that was sent, all tensors of a round together as one vector g_u. It becomes
g_u min(1, clip / |g_u|) + N(0, (noise_multiplier clip)^2 I) (Abadi et al. 2016, with a person in an example's place). What is
noised are the gradients alone: losses, metrics and counts still leave as exact sums. How much is clipped and noised is the
run's setting, so a device relies on its server for it.
"""

import math
import secrets
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from tessera.client.per_person.gradients import PersonUpdates
from tessera.common.metrics.ranking import MetricSums
from tessera.common.privacy.quantile import BELOW
from tessera.common.protocol.updates import Update


def clipped(updates: PersonUpdates, clip: float, half: float = 0.0) -> PersonUpdates:
    """Scale each person's gradients down to a common Euclidean norm of at most `clip`; those that are not finite count 0.

    Where `half` is above 0, each person says so much where theirs were no longer, and less than 0 otherwise: added up, beside
    the gradients (`tessera.common.privacy.quantile`).
    """
    norms = updates.norms()
    scaled = updates.scaled(torch.where(norms.isfinite(), clip / norms.clamp(min=clip), 0.0))
    if not half:
        return scaled
    said = (2 * (norms <= clip).to(scaled.factors) - 1).sum() * half
    return replace(scaled, rest=replace(scaled.rest, gradients={BELOW: said[None]}))


def noised(update: Update, deviation: float, draw: Callable[[torch.Size], Tensor]) -> Update:
    """Add independent normal draws to the gradients.

    On a device `draw` must be `secret_normal`: whoever can repeat a draw can take the noise off again. Only a simulation,
    which hides nothing from anybody, may draw by the run's seed and the people's ids, so that it can be repeated; its noise
    is then the same for the same people in a block, and another where they are dealt out otherwise.
    """
    gradients = {
        name: gradient + deviation * draw(gradient.shape).to(gradient) for name, gradient in update.gradients.items()
    }
    return replace(update, gradients=gradients)


def secret_normal(shape: torch.Size) -> Tensor:
    """Standard normal draws from the operating system's randomness (Box-Muller).

    Not from torch's generator: that takes 32 bits of its seed, few enough to try them all.
    """
    words = torch.frombuffer(bytearray(secrets.token_bytes(16 * shape.numel())), dtype=torch.int64).view(2, *shape)
    radius, angle = (words & ((1 << 53) - 1)).double() * 2.0**-53  # uniform in [0, 1)
    return torch.sqrt(-2 * torch.log1p(-radius)) * torch.cos(2 * math.pi * angle)


def without_figures(update: Update, people: float) -> Update:
    """The update of training with its gradients alone: it weighs as many people as are expected, and tells no losses, which
    noise is not on. So nobody sees who took part either (McMahan et al. 2018, arXiv:1710.06963, the estimator of fixed
    denominator)."""
    return Update(update.gradients, people, MetricSums({"users": people}), parts=update.parts)
