"""Relevance is told of the runs that count, not of those that were only tried."""

from pathlib import Path

import pytest

from tessera.benchmarks.relevance import finished, separation
from tessera.common.utils.atomic_files import write_json

RELEVANCE = {
    "families": ["a", "a", "b", "b"],
    "similarity": [[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0.7], [0, 0, 0.7, 1]],
    "weights": [[0, 0.4, 0.3, 0.3], [0.4, 0, 0.3, 0.3], [0.3, 0.3, 0, 0.4], [0.3, 0.3, 0.4, 0]],
}


def test_only_chosen_settings_count_each_seed_once(tmp_path: Path) -> None:
    folder = tmp_path / "fedmosaic"
    for seed, temperature in ((1, 0.2), (0, 0.5), (0, 0.2)):
        name = f"seed{seed}-temperature={temperature}"
        write_json(folder / name / "result.json", {"seed": seed, "temperature": temperature})
    write_json(folder / "tried.json", {"chosen": {"mosaic.method.temperature": 0.2}})
    assert [(one["seed"], one["temperature"]) for one in finished(tmp_path)] == [(0, 0.2), (1, 0.2)]


def test_families_are_told_apart() -> None:
    found = separation(RELEVANCE)
    assert found["cosine within"] == pytest.approx(0.6)
    assert found["cosine across"] == 0
    assert found["weight of the own family"] == pytest.approx(0.4)
    assert found["the same if all weighed alike"] == pytest.approx(1 / 3)
