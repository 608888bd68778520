"""Makes small splits and settings for tests."""

from collections.abc import Sequence
from dataclasses import replace

import hypothesis
import numpy as np

from tessera.common.config.loading import parse_settings
from tessera.common.config.settings import Settings
from tessera.common.data.interactions import Split
from tessera.common.data.targets import ABSENT, Targets


def split_of(
    items: Sequence[Sequence[int]],
    n_items: int,
    validation: Sequence[int] | None = None,
    test: Sequence[int] | None = None,
) -> Split:
    """Build a split from each user's training items; users are called u0, u1, ..."""
    absent = [ABSENT] * len(items)
    return Split(
        users=tuple(f"u{row}" for row in range(len(items))),
        offsets=np.cumsum([0, *map(len, items)]).astype(np.int64),
        train_items=np.array([item for row in items for item in row], dtype=np.int64),
        validation=Targets.single(absent if validation is None else validation),
        test=Targets.single(absent if test is None else test),
        n_items=n_items,
    )


def shuffled(targets: Targets) -> Targets:
    """The same people with one another's targets."""
    return replace(targets, items=np.random.default_rng(5).permutation(targets.items))


def ragged(seed: int, lengths: Sequence[int], n_items: int) -> list[list[int]]:
    """Draw distinct items for each user: as many as `lengths` says."""
    rng = np.random.default_rng(seed)
    return [rng.choice(n_items, size=length, replace=False).tolist() for length in lengths]


def settings(**groups: object) -> Settings:
    """Build settings from those that matter to a test."""
    return parse_settings({"name": "small", "data": {"folder": "shop"}} | groups, "the test")


def tries(examples: int) -> hypothesis.settings:
    """How many examples a property is tried on. No deadline: the first example of a slow machine is no failure."""
    return hypothesis.settings(max_examples=examples, deadline=None)
