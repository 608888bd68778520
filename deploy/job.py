"""A job: everything an executor needs to carry out a run, and the folders it lies in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.catalogue import load_catalogue, save_items
from common.config import Settings
from common.interactions import assign, load_interactions
from server.checkpoint import Report

__all__ = ["Executor", "Job", "Report", "deal", "device_folders"]


@dataclass(frozen=True)
class Job:
    """A run to carry out: `catalogue` is the server's dataset folder, `devices` one folder a node."""

    settings: Settings
    catalogue: Path
    devices: tuple[Path, ...]
    run_dir: Path
    resume: bool = False


class Executor(Protocol):
    """One way to carry out a job. Raises `RunError` with the reason when the run fails."""

    def __call__(self, job: Job, report: Report) -> None:
        """Run `job` to its end."""
        ...


def deal(dataset: Path, out: Path, n_nodes: int) -> tuple[Path, ...]:
    """Deal a dataset's users out to `n_nodes` device folders below `out`: their own events and the items' titles only."""
    catalogue = load_catalogue(dataset, modalities=False)
    interactions = load_interactions(dataset, len(catalogue))
    folders = []
    for node, rows in enumerate(assign(interactions.users, n_nodes)):
        folder = out / f"node-{node}"
        save_items(catalogue, folder)
        interactions.take(rows).save(folder)
        folders.append(folder)
    return tuple(folders)


def device_folders(out: Path, n_nodes: int) -> Sequence[Path]:
    """Where `deal` puts the folders of `n_nodes` nodes."""
    return [out / f"node-{node}" for node in range(n_nodes)]
