"""Epsilon is that of dp-accounting for Gaussian noise, and of the exact distributions for Skellam noise."""

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import skellam

from tessera.common.config.privacy import PrivacySettings
from tessera.common.errors import RunError
from tessera.common.privacy import accounting
from tessera.common.privacy.account import Account
from tessera.common.privacy.accounting import ORDERS, Release, epsilon, noise_for, renyi

DELTA = 1e-5


@pytest.mark.parametrize(("noise", "rounds"), [(0.3, 25), (1.0, 1), (5.0, 60)])
def test_gaussian_noise_is_counted_as_others_count_it(noise: float, rounds: int) -> None:
    """The closed form for all rounds at once; 0.3 over 25 rounds, one person's own noise, is 209."""
    other = PLDAccountant(value_discretization_interval=1e-3)
    other.compose(GaussianDpEvent(noise), rounds)
    assert epsilon({Release(noise): rounds}, DELTA) == pytest.approx(other.get_epsilon(DELTA), rel=1e-3)


def test_releases_of_different_noise_add_up() -> None:
    assert epsilon({Release(2.0): 4}, DELTA) == pytest.approx(epsilon({Release(1.0): 1}, DELTA))
    other = PLDAccountant(value_discretization_interval=1e-3)
    other.compose(GaussianDpEvent(2.0), 3).compose(GaussianDpEvent(3.0), 5)
    assert epsilon({Release(2.0): 3, Release(3.0): 5}, DELTA) == pytest.approx(other.get_epsilon(DELTA), rel=1e-3)


@pytest.mark.parametrize(("noise", "rounds", "sampled"), [(5.0, 60, 1.0), (1.0, 60, 0.1), (0.8, 200, 0.02)])
def test_skellam_noise_costs_what_gaussian_noise_of_its_size_does(noise: float, rounds: int, sampled: float) -> None:
    """All but the same by Renyi divergences, where all are in; at most a third more where people are sampled, since the bound
    holds for any mechanism and dp-accounting's for Gaussian noise alone. Never less."""
    other = RdpAccountant(list(ORDERS) if sampled == 1 else list(range(2, 129)))
    one = GaussianDpEvent(noise)
    other.compose(one if sampled == 1 else PoissonSampledDpEvent(sampled, one), rounds)
    own, theirs = epsilon({Release(noise, sampled, discrete=True): rounds}, DELTA), other.get_epsilon(DELTA)
    assert theirs * (1 - 1e-6) <= own <= theirs * (1.35 if sampled < 1 else 1.0001)


@settings(deadline=None)
@given(st.integers(1, 40), st.floats(0.5, 4), st.sampled_from([2, 3, 5, 9]))
def test_the_divergence_of_skellam_noise_is_bounded(shift: int, noise: float, order: int) -> None:
    """The exact Renyi divergence of shifted Skellam variables is within what is counted for their length in steps."""
    variance = max((noise * shift) ** 2, 30.0)
    reach = int(12 * math.sqrt(variance) + order * shift + 60)
    places = np.arange(-reach, reach + 1)
    one, other = (skellam.logpmf(places - moved, variance / 2, variance / 2) for moved in (0, shift))
    there = np.isfinite(one) & np.isfinite(other)
    exact = np.log(np.exp(order * one[there] + (1 - order) * other[there]).sum()) / (order - 1)
    resolution, accounting.RESOLUTION = accounting.RESOLUTION, shift
    try:
        counted = renyi.__wrapped__(Release(math.sqrt(variance) / shift, discrete=True), order)
    finally:
        accounting.RESOLUTION = resolution
    assert exact <= counted * (1 + 1e-6) + 1e-9


def test_less_is_told_by_more_noise_fewer_rounds_and_fewer_people() -> None:
    base = epsilon({Release(1.0, discrete=True): 10}, DELTA)
    assert epsilon({Release(1.5, discrete=True): 10}, DELTA) < base
    assert epsilon({Release(1.0, discrete=True): 5}, DELTA) < base
    assert epsilon({Release(1.0, 0.3, discrete=True): 10}, DELTA) < base
    assert epsilon({}, DELTA) == 0
    for wanted in (1.0, 8.0):
        found = epsilon({Release(noise_for(wanted, 25, DELTA), discrete=True): 25}, DELTA)
        assert found == pytest.approx(wanted, rel=1e-3)


def test_a_budget_allows_as_many_rounds_as_stay_within_it() -> None:
    privacy = PrivacySettings(secure=True, clip=1, noise="distributed", noise_multiplier=4, max_epsilon=5)
    account = Account(privacy, 1.0)
    most = account.affords(100)
    assert 1 < most < 100
    assert Account(privacy, 1.0, most).epsilon <= 5 < Account(privacy, 1.0, most + 1).epsilon
    assert Account(privacy, 1.0, most - 2).affords(100) == 2
    assert Account(privacy, 1.0, most).affords(100) == 0
    assert Account(PrivacySettings(), 1.0, 3).epsilon is None
    with pytest.raises(RunError, match=r"one round has epsilon .*max_epsilon is 5"):
        Account(privacy.model_copy(update={"noise_multiplier": 0.5}), 1.0).affords(100)
