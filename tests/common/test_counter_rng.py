"""Draws by counting: the same alone and among others, uniform, and different for different purposes."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tessera.common.utils import counter_rng
from tests.support.splits import tries

WORD = 2**64 - 1
SALT = counter_rng.key("test", 0)
USERS = [f"user-{number}" for number in range(500)]
POSITIONS = torch.arange(400)
int64 = st.integers(-(2**63), 2**63 - 1)


def naive_mix(salt: int, *counters: int) -> int:
    """splitmix64's finaliser, counter by counter, in Python's integers; returned as signed."""
    state = salt & WORD
    for counter in counters:
        state = (state + counter + 0x9E3779B97F4A7C15) & WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & WORD
        state ^= state >> 31
    return state - 2**64 if state >= 2**63 else state


def draws(users: list[str], salt: int = SALT) -> torch.Tensor:
    return counter_rng.uniform(salt, counter_rng.user_keys(users)[:, None], POSITIONS)


@tries(60)
@given(int64, int64, int64)
def test_the_hash_is_splitmix64(salt: int, first: int, second: int) -> None:
    assert int(counter_rng.mix(salt, torch.tensor(first), torch.tensor(second))) == naive_mix(salt, first, second)


def test_keys_are_a_stable_hash_of_all_parts() -> None:
    digest = hashlib.blake2b(b"negatives\x1f3\x1f0", digest_size=8).digest()
    assert counter_rng.key("negatives", 3, 0) == int.from_bytes(digest, "little", signed=True)
    keys = [
        counter_rng.key(*parts) for parts in [("a",), ("a", 0), ("a", 1), (0, "a"), ("a", "01"), ("a0",), ("a", 0, 1)]
    ]
    assert len(set(keys)) == len(keys)


def test_a_user_draws_the_same_alone_and_among_others() -> None:
    among = draws(USERS)
    for row in (0, 17, 499):
        assert torch.equal(draws([USERS[row]])[0], among[row])
    some = [400, 3, 77, 3]
    assert torch.equal(draws([USERS[row] for row in some]), among[some])


def test_positions_do_not_depend_on_which_are_asked_for() -> None:
    keys = counter_rng.user_keys(USERS)[:, None]
    some = torch.tensor([399, 5, 5, 0])
    assert torch.equal(counter_rng.uniform(SALT, keys, some), draws(USERS)[:, some])


def test_uniform_is_float32_in_the_half_open_interval() -> None:
    values = draws(USERS)
    assert values.dtype == torch.float32
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    steps = values.double() * 2**24
    assert torch.equal(steps, steps.round()), "24 bits, exact in float32"


def test_the_largest_draw_is_below_one() -> None:
    """-1 has all bits set: the largest 24-bit draw."""
    top = counter_rng._shift(torch.tensor([-1]), 40).to(torch.float32) * 2.0**-24
    assert float(top) == 1 - 2**-24
    assert torch.isfinite(torch.log1p(-top)).all()


@pytest.mark.parametrize("along", ["all", "positions of one user", "users at one position", "plain counter"])
def test_uniform_fills_all_bins_alike(along: str) -> None:
    values = {
        "all": draws(USERS).flatten(),
        "positions of one user": counter_rng.uniform(SALT, counter_rng.user_keys(["one"]), torch.arange(200_000)),
        "users at one position": counter_rng.uniform(SALT, counter_rng.user_keys([str(n) for n in range(30_000)])),
        "plain counter": counter_rng.uniform(7, torch.arange(200_000)),
    }[along]
    counts = np.histogram(values.numpy(), bins=100, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 1e-5


def test_neighbouring_draws_are_independent() -> None:
    values = draws(USERS).numpy()
    for left, right in ((values[:, :-1], values[:, 1:]), (values[:-1], values[1:])):
        cells = np.histogram2d(left.ravel(), right.ravel(), bins=10, range=((0, 1), (0, 1)))[0]
        assert stats.chisquare(cells.ravel()).pvalue > 1e-5


def test_normal_has_the_moments_and_the_distribution() -> None:
    values = counter_rng.normal(SALT, counter_rng.user_keys(USERS)[:, None], POSITIONS)
    assert values.dtype == torch.float32
    flat = values.double().flatten().numpy()
    n = len(flat)
    assert np.isfinite(flat).all()
    for moment, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((flat**moment).mean() - mean) < 5 * (variance / n) ** 0.5, f"moment {moment}"
    assert stats.kstest(flat, "norm").pvalue > 1e-5


def test_other_salts_give_other_draws() -> None:
    base = draws(USERS).flatten().double()
    for other in (counter_rng.key("test", 1), counter_rng.key("other", 0), SALT + 1):
        values = draws(USERS, other).flatten().double()
        assert float((values == base).double().mean()) < 1e-4
        together = float(torch.corrcoef(torch.stack([base, values]))[0, 1])
        assert abs(together) < 5 / len(base) ** 0.5


def test_users_with_like_names_are_strangers() -> None:
    keys = counter_rng.user_keys([*USERS, "user-1 ", "User-1", "1", "é", ""])
    assert len(set(keys.tolist())) == len(keys)
