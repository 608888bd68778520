"""Draws Skellam noise: the difference of two Poisson variables of one mean, whole numbers whose sums are Skellam again.

Poisson variables are drawn by transformed rejection (Hoermann 1993, *The transformed rejection method for generating Poisson
random variables*, algorithm PTRS), with the probability as Loader (2000) writes it, which loses no digits for large means.
Randomness is a stream of AES-256-CTR: a generator of 32 bits of seed could be tried out, and the noise taken off.
"""

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

SMALLEST = 2048.0
"""The least variance that is drawn: below it a sum's whole numbers are too coarse."""
_CHUNK = 2**15
"""Numbers that are drawn at once: they stay in the processor's cache."""
Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


class Uniforms:
    """Uniform numbers in (0, 1) of 53 bits, from a key of 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._stream = Cipher(AES256(key), CTR(bytes(16))).encryptor()

    def draw(self, n: int) -> Floats:
        """The next n."""
        words = np.frombuffer(self._stream.update(bytes(8 * n)), dtype="<u8")
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def skellam(variance: float, n: int, key: bytes) -> Whole:
    """`n` independent draws of mean 0 and this variance, [n], which `key` decides. Raises `ValueError` below `SMALLEST`."""
    if not SMALLEST <= variance < 2.0**62:
        raise ValueError(f"Skellam noise of variance {variance:g} is not drawn")
    uniforms, found = Uniforms(key), np.empty(n, np.int64)
    for start in range(0, n, _CHUNK):
        size = min(_CHUNK, n - start)
        drawn = _centred_poisson(variance / 2, 2 * size, uniforms)
        found[start : start + size] = drawn[:size] - drawn[size:]
    return found


def _centred_poisson(mean: float, n: int, uniforms: Uniforms) -> Whole:
    """Poisson draws less the whole part of their mean, so that large ones keep their digits."""
    found, waiting = np.empty(n, np.int64), np.arange(n)
    while len(waiting):
        values, accepted = _proposed(mean, len(waiting), uniforms)
        found[waiting[accepted]] = values[accepted]
        waiting = waiting[~accepted]
    return found


def _proposed(mean: float, n: int, uniforms: Uniforms) -> tuple[Whole, NDArray[np.bool_]]:
    """Proposals, less the whole part of the mean, and which of them are accepted."""
    whole = math.floor(mean)
    b = 0.931 + 2.53 * math.sqrt(mean)
    a = -0.059 + 0.02483 * b
    inverse, squeeze = 1.1239 + 1.1328 / (b - 3.4), 0.9277 - 3.6224 / (b - 2)
    u, v = uniforms.draw(n) - 0.5, uniforms.draw(n)
    side = 0.5 - np.abs(u)
    away = np.floor((2 * a / side + b) * u + 0.43 + (mean - whole))
    near = (side >= 0.07) & (v <= squeeze)
    possible = (away >= 1 - whole) & ~((side < 0.013) & (v > side))
    unsure = possible & ~near
    height = np.log(v[unsure] * inverse / (a / side[unsure] ** 2 + b))
    accepted = near & (away >= 1 - whole)
    accepted[unsure] = height <= _log_chance(away[unsure], mean)
    return np.clip(away, -(2.0**61), 2.0**61).astype(np.int64), accepted


def _log_chance(away: Floats, mean: float) -> Floats:
    """log P(K = floor(mean) + away): -log(2 pi k) / 2 - 1/(12 k) + 1/(360 k^3) - mean h((k - mean) / mean), with
    h(x) = (1 + x) log(1 + x) - x."""
    k = math.floor(mean) + away
    x = (away + (math.floor(mean) - mean)) / mean
    found: Floats = -0.5 * np.log(2 * np.pi * k) - 1 / (12 * k) + 1 / (360 * k**3) - mean * ((1 + x) * np.log1p(x) - x)
    return found
