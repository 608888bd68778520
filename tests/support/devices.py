"""Makes small datasets of users whose devices have towers; the readers were never fitted."""

from pathlib import Path
from typing import Any

from tessera.common.config.loading import overlaid, parse_settings
from tessera.common.config.settings import Settings
from tessera.deploy.executors.run import make_job
from tessera.deploy.job import Job
from tests.support.catalogues import small_interactions
from tests.support.qa_devices import BLOCKS, N_ITEMS, RANK, qa_dataset


def people_with_towers(folder: Path, n_users: int = 14) -> Path:
    """A dataset with people, both modalities and the towers of three device classes."""
    qa_dataset(folder, n_clients=1)
    small_interactions(n_users, N_ITEMS).save(folder)
    return folder


def people_settings(**changes: Any) -> Settings:
    """A few quick rounds of both; `changes` replace whole groups or single settings, but of `mosaic` only what they name."""
    mosaic = {"classes": ["tiny", "small"], "rank": RANK, "method": {"name": "fedmosaic", "blocks": BLOCKS}}
    changes = overlaid({"mosaic": mosaic}, changes)
    content: dict[str, Any] = {
        "name": "people",
        "data": {"folder": "people"},
        "strategy": "combined",
        "rounds": 3,
        "device": "cpu",
        "views": {"id_dim": 8, "operators": ["sum"]},
        "evaluation": {"every": 1, "baselines": False},
        "wire": {"views": "float32"},
    }
    return parse_settings(content | changes, "test")


def people_job(dataset: Path, run_dir: Path, nodes: int = 2, resume: bool = False, **changes: Any) -> Job:
    """A job on the dataset, its run in `run_dir`."""
    federation = {"nodes": nodes, **changes.pop("federation", {})}
    return make_job(people_settings(federation=federation, **changes), dataset, run_dir, resume, overwrite=False)
