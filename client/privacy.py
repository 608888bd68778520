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
from tessera.common.protocol.updates import Update


def clipped(updates: PersonUpdates, clip: float) -> PersonUpdates:
    """Scale each person's gradients down to a common Euclidean norm of at most `clip`."""
    return updates.scaled(clip / updates.norms().clamp(min=clip))


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


def epsilon(noise_multiplier: float, rounds: int, delta: float = 1e-5) -> float:
    """What `rounds` noised uploads together tell of whether a person took part: the epsilon of differential privacy.

    For who sees one person's uploads `noise_multiplier` is the setting; for who sees only sums over n people, each with their
    own noise, it is sqrt(n) times that. The uploads are one Gaussian mechanism of mu = sqrt(rounds) / noise_multiplier (Dong,
    Roth & Su 2022, Cor. 3.3), with delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) (Balle & Wang 2018, Theorem 8). A
    `fraction` below 1 makes it no smaller: the server knows the seed by which people take part.
    """
    mu = math.sqrt(rounds) / noise_multiplier

    def log_cdf(value: float) -> float:
        return float(torch.special.log_ndtr(torch.tensor(value, dtype=torch.float64)))

    low, high = 0.0, mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    for _ in range(100):
        middle = (low + high) / 2
        leaked = math.exp(log_cdf(mu / 2 - middle / mu)) - math.exp(middle + log_cdf(-mu / 2 - middle / mu))
        low, high = (middle, high) if leaked > delta else (low, middle)
    return high
