"""The account of a run: what its noised rounds tell of a person so far, and how many more a budget allows."""

from dataclasses import dataclass

from tessera.common.config.privacy import PrivacySettings
from tessera.common.errors import RunError
from tessera.common.privacy.accounting import Release, epsilon


def release(privacy: PrivacySettings, fraction: float) -> Release | None:
    """What one round of training releases of a person; None where it is exact.

    Local noise is counted as who sees one person's upload would: nobody else's adds to it. Distributed noise is that of the
    sum; where each person takes part with a chance, which nobody sees, that counts too.
    """
    if not privacy.noise_multiplier:
        return None
    if privacy.noise == "local":
        return Release(privacy.noise_multiplier)
    return Release(privacy.noise_multiplier, fraction, discrete=True)


@dataclass
class Account:
    """Counts the rounds that were asked for, whether they brought anything or not."""

    privacy: PrivacySettings
    fraction: float
    rounds: int = 0

    @property
    def epsilon(self) -> float | None:
        """Of all rounds so far, at the settings' delta; None where they are exact."""
        return self._after(self.rounds)

    def affords(self, rounds: int) -> int:
        """How many of so many more rounds the budget allows. Raises `RunError` where it was never enough for one."""
        most = self.privacy.max_epsilon
        if most is None or not rounds or (self._after(self.rounds + rounds) or 0.0) <= most:
            return rounds
        low, high = 0, rounds  # it allows `low`, and not `high`
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if (self._after(self.rounds + middle) or 0.0) <= most else (low, middle)
        if not low and not self.rounds:
            told = f"one round has epsilon {self._after(1):.2f}, privacy.max_epsilon is {most:g}"
            raise RunError(f"{told}: raise privacy.noise_multiplier, or max_epsilon")
        return low

    def _after(self, rounds: int) -> float | None:
        one = release(self.privacy, self.fraction)
        return epsilon({one: rounds}, self.privacy.delta) if one else None
