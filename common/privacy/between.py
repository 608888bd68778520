"""How many people come between two sums: by their difference anybody reads what these alone did, masks or not."""

from collections.abc import Hashable, Mapping
from typing import TypeVar

LEAST = 64
"""People in a sum, and between two sums, where nobody says otherwise. Sums over fewer say more of each than popularity does."""
HELD_BACK = "held-back"
"""The kind of refusal of a device that holds a sum back since too few people come between it and an earlier one."""
Unit = TypeVar("Unit", bound=Hashable)


def people_between(before: Mapping[Unit, int], now: Mapping[Unit, int]) -> int:
    """How many people came or went, at least, where the units of two sums had so many: 0 where they may be the same."""
    return sum(abs(before.get(unit, 0) - now.get(unit, 0)) for unit in before.keys() | now.keys())
