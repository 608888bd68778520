"""Counts what noised sums tell of one person: the epsilon of differential privacy, over all rounds, at a delta.

Two datasets are neighbours where one person's gradients are there or are all zero ("zero-out", Kairouz et al. 2021,
arXiv:2103.00039, Definition 1.1); that person is all that they have contributed, in every round. So who takes part at all, and
how many do, is not what is hidden.

Gaussian noise over rounds is one Gaussian mechanism (Dong, Roth & Su 2022, Cor. 3.3), whose epsilon has a closed form (Balle &
Wang 2018, Theorem 8). Skellam noise is counted by Renyi divergences (Agarwal, Kairouz & Liu 2021, arXiv:2110.04995, Theorem
3.5), Poisson sampling by Zhu & Wang (2019, Theorem 6), and both become an epsilon by Canonne, Kamath & Steinke (2020,
Proposition 12).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

RESOLUTION = 2**12
"""The fewest steps of the whole numbers under masks that a person's clipped gradients may be long: see `masked_noise`."""
ORDERS = (*range(2, 129), *(2**step for step in range(8, 21)))
"""Renyi orders at which is looked: whole ones, for which the bounds are stated."""
SAMPLED = 512
"""The largest of them where people are sampled: there the work grows with the order."""


@dataclass(frozen=True)
class Release:
    """One noised sum: `noise` is its standard deviation as a multiple of the most that one person can change it by.

    `sampled` is the chance with which each person is in it, drawn where nobody else sees; 1 where all are. `discrete` is
    Skellam noise on whole numbers, at least `RESOLUTION` of which are that most; otherwise the noise is Gaussian.
    """

    noise: float
    sampled: float = 1.0
    discrete: bool = False


def epsilon(releases: Mapping[Release, int], delta: float) -> float:
    """The epsilon of so many of each release together."""
    kept = {release: count for release, count in releases.items() if count}
    if not kept:
        return 0.0
    if all(release.sampled == 1 and not release.discrete for release in kept):
        return gaussian_epsilon(math.sqrt(sum(count / release.noise**2 for release, count in kept.items())), delta)
    most = SAMPLED if any(release.sampled < 1 for release in kept) else max(ORDERS)
    totals = {
        order: sum(count * renyi(release, order) for release, count in kept.items())
        for order in ORDERS
        if order <= most
    }
    return min(_converted(order, total, delta) for order, total in totals.items())


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon of one Gaussian mechanism whose noise is 1 / mu: delta = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)."""

    def log_cdf(value: float) -> float:
        return float(torch.special.log_ndtr(torch.tensor(value, dtype=torch.float64)))

    low, high = 0.0, mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    for _ in range(100):
        middle = (low + high) / 2
        leaked = math.exp(log_cdf(mu / 2 - middle / mu)) - math.exp(middle + log_cdf(-mu / 2 - middle / mu))
        low, high = (middle, high) if leaked > delta else (low, middle)
    return high


@lru_cache(maxsize=2**14)
def renyi(release: Release, order: int) -> float:
    """The Renyi divergence of an order >= 2 between the release with and without a person, at most."""
    whole = _unsampled(release, order)
    return whole if release.sampled == 1 else min(_sampled(release, order), whole)


def _unsampled(release: Release, order: int) -> float:
    """alpha / (2 z^2), and for Skellam noise what it has beyond that: there Delta_2 >= RESOLUTION steps, the variance is
    z^2 Delta_2^2, and Delta_1 <= Delta_2^2 since all are whole numbers."""
    gaussian = order / (2 * release.noise**2)
    if not release.discrete:
        return gaussian
    variance = release.noise**2 * RESOLUTION**2
    extra = ((2 * order - 1) * RESOLUTION**2 + 6 * RESOLUTION**2) / (4 * variance**2)
    return gaussian + min(extra, 3 / (2 * release.noise**2))


def _sampled(release: Release, order: int) -> float:
    """log(((1 - q)^(a - 1) (a q - q + 1) + C(a, 2) q^2 (1 - q)^(a - 2) e^r(2) + 3 sum_(l > 2) C(a, l) q^l (1 - q)^(a - l)
    e^((l - 1) r(l))) / (a - 1), with r the divergence where everybody is in."""
    q, rest = math.log(release.sampled), math.log1p(-release.sampled)
    terms = [(order - 1) * rest + math.log1p((order - 1) * release.sampled)]
    for taken in range(2, order + 1):
        choose = math.lgamma(order + 1) - math.lgamma(taken + 1) - math.lgamma(order - taken + 1)
        grown = (taken - 1) * _unsampled(release, taken)
        terms.append(choose + taken * q + (order - taken) * rest + grown + (math.log(3) if taken > 2 else 0.0))
    largest = max(terms)
    return (largest + math.log(sum(math.exp(term - largest) for term in terms))) / (order - 1)


def _converted(order: int, divergence: float, delta: float) -> float:
    """The epsilon that a divergence of this order gives."""
    return max(0.0, divergence + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))


def noise_for(wanted: float, rounds: int, delta: float, sampled: float = 1.0, discrete: bool = True) -> float:
    """The least noise multiplier by which `rounds` releases have an epsilon of at most `wanted`."""
    low, high = 0.0, 1.0
    while epsilon({Release(high, sampled, discrete): rounds}, delta) > wanted:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if epsilon({Release(middle, sampled, discrete): rounds}, delta) > wanted else (low, middle)
        )
    return high
