"""Shares the noise of a secure sum out among its devices, in the whole numbers of the masks.

A device of a group of n adds to its whole numbers Skellam noise of variance (z D)^2 / m, where z is the noise multiplier, D the
most by which a person can change the numbers, and m the devices that are counted on: Skellam variables of m devices add up to
one of variance (z D)^2, whoever they are (Agarwal, Kairouz & Liu 2021, arXiv:2110.04995). More that answer make more noise.

D = s C + sqrt(d) for a clip C, s steps to a unit and d numbers: rounding a sum by draws that do not depend on the data moves
each number by less than a step beyond what the person moved it. What adding up in float32 moves it by, `SLACK` covers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.common.config.privacy import PrivacySettings
from tessera.common.errors import SecureSumError
from tessera.common.privacy.accounting import RESOLUTION
from tessera.common.privacy.quantile import reach
from tessera.common.privacy.skellam import SMALLEST, skellam
from tessera.common.secure.fixed_point import Spec, Words
from tessera.common.utils.atomic_files import digest

SLACK = 1.01
"""By how much float32 may add to a person's length, and to a sum of people."""
ROOM = 15.0
"""Standard deviations of the noise that a sum has room for."""


@dataclass(frozen=True)
class MaskedNoise:
    """The noise of a secure sum: `multiplier` times `clip`, the most that a person changes it by, of which the `share` of its
    devices is enough."""

    multiplier: float
    clip: float
    share: float

    @classmethod
    def of(cls, privacy: PrivacySettings) -> "MaskedNoise | None":
        """The noise that settings ask for; None where devices add none under masks."""
        if not privacy.distributed:
            return None
        return cls(privacy.noise_multiplier, reach(privacy), privacy.noise_share)

    def counted(self, n: int) -> int:
        """How many of n devices are counted on."""
        return max(1, math.floor(self.share * n))

    def bound(self, people: int, n: int) -> float:
        """The largest number that a device of so many people may have in a sum of n, with room for its part of the noise."""
        return self.clip * (SLACK * people + ROOM * SLACK * self.multiplier / math.sqrt(n * self.counted(n)))

    def variance(self, specs: Sequence[Spec], people: int, n: int) -> float:
        """That of a device's own part, in steps. Raises `SecureSumError` where a sum would not be as private as counted."""
        steps = {spec.scale(n) for spec in specs}
        if len(steps) != 1:
            raise SecureSumError("gradients are not all of the same steps, which their noise is counted in")
        if min(spec.bound for spec in specs) < SLACK * self.clip * people:
            raise SecureSumError(f"the bounds of a sum leave no room for {people} clipped people")
        length = steps.pop() * self.clip * SLACK
        if length < RESOLUTION:
            raise SecureSumError(
                f"a person's gradients are {length:.0f} steps of the sum's whole numbers, {RESOLUTION} are needed to count its "
                "noise: lower privacy.group, or put fewer people on a device"
            )
        variance = (self.multiplier * (length + math.sqrt(sum(spec.size for spec in specs)))) ** 2 / self.counted(n)
        if variance < SMALLEST:
            raise SecureSumError(f"noise of variance {variance:.0f} is too coarse: raise privacy.noise_multiplier")
        return variance

    def draw(self, specs: Sequence[Spec], people: int, n: int, secret: bytes) -> Words:
        """A device's part of the noise on these tensors, drawn by `secret`."""
        variance = self.variance(specs, people, n)
        keys = {spec.name: bytes.fromhex(digest(secret + spec.name.encode())) for spec in specs}
        return {spec.name: skellam(variance, spec.size, keys[spec.name]).astype(spec.dtype) for spec in specs}
