"""Cuts devices into groups, by a draw that everybody can repeat and nobody chose alone.

Each device's announcement holds fresh random keys, so its hash is that device's part of the draw: who is with whom depends on
all of them.
"""

import hashlib
from collections.abc import Iterable

from tessera.common.errors import SecureSumError

FEWEST = 3
"""Devices of the smallest group there is: a federation of fewer than twice `SMALLEST` is one group."""
SMALLEST, LARGEST = 8, 64
USUAL = 64
"""Devices of a group where nothing else is asked for. What a device and the server compute grows with its square; but a sum
over 16 people with a device each says more of each of them than popularity does, and one over 64 hardly."""


def group_sizes(n: int, size: int = USUAL) -> list[int]:
    """How n devices are cut into groups of about `size`: as evenly as can be, each of 8 to 64 devices; below 16, one group.

    Raises `SecureSumError` for fewer than three devices, or a size that no group may have.
    """
    if n < FEWEST:
        raise SecureSumError(
            f"secure sums need at least {FEWEST} devices, and there are {n}: let more join, or do without"
        )
    if not SMALLEST <= size <= LARGEST:
        raise SecureSumError(f"groups of secure sums have {SMALLEST} to {LARGEST} devices, not {size}")
    if n < 2 * SMALLEST:
        return [n]
    groups = max(-(-n // LARGEST), min(round(n / size), n // SMALLEST))
    return [n // groups + (place < n % groups) for place in range(groups)]


def draw_groups(hashes: Iterable[bytes], size: int = USUAL) -> list[tuple[bytes, ...]]:
    """Cut devices, known by the hashes of their announcements, into groups; the order in which they are given is nothing."""
    everyone = sorted(hashes)
    seed = hashlib.sha256(b"tessera secure groups" + b"".join(everyone)).digest()
    drawn = sorted(everyone, key=lambda one: hashlib.sha256(seed + one).digest())
    groups, at = [], 0
    for length in group_sizes(len(drawn), size):
        groups.append(tuple(drawn[at : at + length]))
        at += length
    return groups
