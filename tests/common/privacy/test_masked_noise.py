"""The parts of a noise that devices add in whole numbers are Skellam variables, enough of them, and never too coarse."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, skellam

from tessera.common.errors import SecureSumError
from tessera.common.privacy.masked_noise import MaskedNoise
from tessera.common.privacy.skellam import skellam as draw
from tessera.common.secure.fixed_point import Spec, add, from_words, to_words, zeros

KEY = bytes(range(32))
SHAPES = {"gradients/views": (1, 400, 64), "gradients/history": (400, 64)}


def layout(noise: MaskedNoise, people: int, n: int) -> list[Spec]:
    return [Spec(name, shape, "table", noise.bound(people, n)) for name, shape in SHAPES.items()]


def test_draws_are_skellam_variables() -> None:
    """Each value as often as its exact chance says; at a size that no table reaches, as the normal law does."""
    found = draw(2048.0, 400_000, KEY)
    values, counts = np.unique(found[np.abs(found) < 130], return_counts=True)
    chances = skellam.pmf(values, 1024, 1024)
    assert chisquare(counts, chances * counts.sum() / chances.sum()).pvalue > 0.001
    assert kstest(draw(1e14, 100_000, KEY) / 1e7, "norm").pvalue > 0.001


def test_the_same_secret_draws_the_same_and_another_does_not() -> None:
    assert (draw(1e6, 100, KEY) == draw(1e6, 100, KEY)).all()
    assert (draw(1e6, 100, KEY) != draw(1e6, 100, bytes(32))).mean() > 0.9
    with pytest.raises(ValueError, match="variance 100"):
        draw(100.0, 1, KEY)


@pytest.mark.parametrize("n", [3, 16])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_sum_of_the_devices_that_are_counted_on_has_the_noise_that_is_counted(n: int, share: float) -> None:
    """Of values that are all zero; without an overflow, though all answer."""
    noise, people = MaskedNoise(2.0, 0.5, share), 20
    specs = layout(noise, people, n)
    total = zeros(specs)
    for device in range(noise.counted(n)):
        words = to_words({spec.name: torch.zeros(spec.shape) for spec in specs}, specs, n, device)
        add(words, noise.draw(specs, people, n, bytes([device])))
        add(total, words)
    for value in from_words(total, specs, n).values():
        assert 2.0 * 0.5 <= float(value.std()) / 1.005 <= 2.0 * 0.5 * 1.05
        assert abs(float(value.mean())) < 0.05


@settings(deadline=None)
@given(st.integers(3, 64), st.integers(1, 500), st.floats(0.1, 50), st.floats(0.01, 10), st.floats(0.1, 1))
def test_sums_have_room_for_people_and_noise(n: int, people: int, multiplier: float, clip: float, share: float) -> None:
    """A device's part of the noise, and all its people as far as they may go, stay within what a sum can hold."""
    noise = MaskedNoise(multiplier, clip, share)
    specs = layout(noise, people, n)
    variance = noise.variance(specs, people, n)
    largest = n * people * clip * specs[0].scale(n) + 12 * (n * variance) ** 0.5
    assert largest < 2**31


def test_what_would_not_be_as_private_as_it_is_counted_is_refused() -> None:
    noise = MaskedNoise(1.0, 1.0, 0.5)
    good = layout(noise, 20, 16)
    with pytest.raises(SecureSumError, match="no room for 40 clipped people"):
        noise.variance(good, 40, 16)
    with pytest.raises(SecureSumError, match="4096 are needed"):
        noise.variance([Spec("gradients/views", (4, 4), "table", 1e6)], 20, 16)
    with pytest.raises(SecureSumError, match="not all of the same steps"):
        noise.variance([good[0], Spec("gradients/history", (4, 4), "table", 1e4)], 20, 16)
