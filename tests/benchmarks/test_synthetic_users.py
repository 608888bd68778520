"""Generated users: as skewed as Beauty, and the same users whatever their number."""

from pathlib import Path

import numpy as np
import pytest

from tessera.benchmarks.synthetic_users import N_ITEMS, write_synthetic_users
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions


def test_a_larger_crowd_begins_with_the_same_people_and_is_as_skewed_as_beauty(tmp_path: Path) -> None:
    for n_users in (50, 5000):
        write_synthetic_users(n_users, tmp_path / str(n_users))
    few, many = (load_interactions(tmp_path / name, N_ITEMS) for name in ("50", "5000"))
    assert many.take(np.arange(50)).frame().equals(few.frame())

    lengths, counts = np.diff(many.offsets), np.sort(np.bincount(many.items, minlength=N_ITEMS))[::-1]
    assert np.quantile(lengths, [0.1, 0.25, 0.5, 0.75, 0.9]).tolist() == [5, 5, 6, 9, 14]  # Beauty's own
    shares = [counts[:rank].sum() / counts.sum() for rank in (121, 1210, 6050)]
    assert shares == pytest.approx([0.105, 0.428, 0.811], abs=0.06)  # of Beauty's events, by its most popular items

    one, other = (load_catalogue(tmp_path / name) for name in ("50", "5000"))
    assert one.items == other.items
    assert np.array_equal(one.features["image"].values, other.features["image"].values)
    assert not np.array_equal(one.features["image"].values, one.features["text"].values)
