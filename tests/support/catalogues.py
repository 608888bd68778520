"""Makes small datasets, settings and jobs for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from tessera.common.config.loading import parse_settings
from tessera.common.config.settings import Settings
from tessera.common.data.interactions import Interactions
from tessera.deploy.executors.run import make_job
from tessera.deploy.job import Job
from tessera.testing.data import small_catalogue, small_interactions, small_split

__all__ = ["small_catalogue", "small_dataset", "small_interactions", "small_job", "small_settings", "small_split"]


def planted_interactions(n_users: int, n_items: int, seed: int = 0) -> Interactions:
    """Users of two kinds, each with 12 events in their own half of the catalogue."""
    rng = np.random.default_rng(seed)
    half = n_items // 2
    items = np.concatenate([rng.permutation(half)[:12] + half * (n % 2) for n in range(n_users)])
    offsets, times = 12 * np.arange(n_users + 1), np.tile(np.arange(12), n_users)
    return Interactions(tuple(f"person-{n}" for n in range(n_users)), offsets, items, times, n_items)


def small_dataset(folder: Path, n_users: int = 14, n_items: int = 40, seed: int = 0, planted: bool = False) -> Path:
    """A dataset on disk."""
    make = planted_interactions if planted else small_interactions
    catalogue, interactions = small_catalogue(n_items, seed), make(n_users, n_items, seed)
    catalogue.save(folder)
    interactions.save(folder)
    (folder / "dataset.json").write_text("{}")
    return folder


def small_settings(**changes: Any) -> Settings:
    """A few quick rounds; `changes` replace whole groups or single settings."""
    content: dict[str, Any] = {
        "name": "small",
        "data": {"folder": "small"},
        "rounds": 4,
        "views": {"dim": 8, "id_dim": 8},
        "local": {"backbone": "history", "learning_rate": 0.01},
        "server": {"learning_rate": 0.01},
        "evaluation": {"every": 2},
        "wire": {"views": "float32"},
    }
    return parse_settings(content | changes, "test")


def small_job(tmp_path: Path, name: str = "run", nodes: int = 2, resume: bool = False, **changes: Any) -> Job:
    """A job on the small dataset below `tmp_path`, its run in the folder `name`."""
    dataset = tmp_path / "small"
    planted = changes.pop("planted", False)
    if not dataset.exists():
        small_dataset(dataset, 40, 66, planted=True) if planted else small_dataset(dataset)
    federation = {"nodes": nodes, **changes.pop("federation", {})}
    return make_job(small_settings(federation=federation, **changes), dataset, tmp_path / name, resume, overwrite=False)
