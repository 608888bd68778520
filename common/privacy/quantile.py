"""Finds the clip while a run trains: people say by one bit each, under their gradients' noise, whether it was enough.

Adaptive clipping (Andrew et al. 2021, *Differentially Private Learning with Adaptive Clipping*, arXiv:1905.03871, Algorithm 1):
after a round the clip C becomes C exp(-RATE (share - quantile)), where `share` is that of people whose gradients were no longer
than C, from a noised sum of their bits less 1/2.

Here the bit travels as one more coordinate of the gradients, as HALF C or -HALF C. With it a person changes the sum by no more
than sqrt(1 + HALF^2) C, of which the noise is `noise_multiplier` times: that is their Theorem 1, z^-2 = z_g^-2 + (2 z_b)^-2,
with z_g = z sqrt(1 + HALF^2) on the gradients and z_b = z sqrt(1 + HALF^2) / (2 HALF) on the bits. So epsilon is as without
it, and the gradients have half a percent more noise.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tessera.common.config.privacy import PrivacySettings

BELOW = "below"
"""Name of that coordinate [1] among the gradients."""
HALF = 0.1
"""How far the bit moves the sum, as a multiple of the clip."""
RATE = 0.2
"""The paper's learning rate."""
SMALLEST, LARGEST = 1e-6, 1e6
"""Between these a clip stays."""


def half(privacy: PrivacySettings) -> float:
    """What a person says whose gradients are no longer than the clip; others say as much below 0. 0: nobody says it."""
    return HALF * privacy.clip if privacy.clip_quantile else 0.0


def reach(privacy: PrivacySettings) -> float:
    """The most by which a person can change a sum of gradients, the bit among them: what noise is a multiple of."""
    return math.hypot(privacy.clip, half(privacy))


def with_bit(sent: Mapping[str, Tensor], privacy: PrivacySettings) -> dict[str, Tensor]:
    """What gradients come back for: what was sent, and the bit where it is wanted."""
    return {**sent, BELOW: torch.empty(1)} if privacy.clip_quantile else dict(sent)


def moved(privacy: PrivacySettings, total: float, people: float) -> tuple[float, float]:
    """The next round's clip, and the share of people below this round's, from the sum of what so many people said."""
    share = min(1.0, max(0.0, 0.5 + total / (2 * half(privacy) * people)))
    return min(LARGEST, max(SMALLEST, privacy.clip * math.exp(-RATE * (share - privacy.clip_quantile)))), share
