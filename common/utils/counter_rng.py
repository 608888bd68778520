"""Draws random numbers without state: every draw is a hash of (seed, purpose, round, user, position).

So no order of users, no number of nodes or workers and no restart changes a draw, and there is no generator to save.
The hash is splitmix64's finaliser (Steele, Lea & Flood 2014), vectorised on wrapping int64.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as signed
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def key(*parts: int | str) -> int:
    """One int64 from anything that names a purpose, such as ("negatives", seed, round, epoch)."""
    content = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def user_keys(users: Sequence[str]) -> Tensor:
    """One int64 a user, [n_users], from the user's id."""
    return torch.tensor([key("user", user) for user in users], dtype=torch.int64)


def mix(salt: int, *counters: Tensor) -> Tensor:
    """Hash counters that broadcast against each other, and a `salt` from `key`, into uniform int64."""
    state: Tensor | int = salt
    for counter in counters:
        state = state + counter + _GOLDEN
        state = (state ^ _shift(state, 30)) * _MIX_1
        state = (state ^ _shift(state, 27)) * _MIX_2
        state = state ^ _shift(state, 31)
    return torch.as_tensor(state)


def uniform(salt: int, *counters: Tensor) -> Tensor:
    """Hash counters into float32 uniform in [0, 1)."""
    return _shift(mix(salt, *counters), 40).to(torch.float32) * 2.0**-24


def normal(salt: int, *counters: Tensor) -> Tensor:
    """Hash counters into standard normal float32 (Box-Muller)."""
    radius = torch.sqrt(-2 * torch.log1p(-uniform(key(salt, "radius"), *counters)))
    return radius * torch.cos(2 * math.pi * uniform(key(salt, "angle"), *counters))


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)
