"""Describes a run to whatever executes it: its settings, its dataset, the devices' folders, and where results go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tessera.common.config.settings import Settings
from tessera.deploy.environment import NodeKind
from tessera.server.run_folder import Report

__all__ = ["Executor", "Job", "Report"]


@dataclass(frozen=True)
class Job:
    """A run to carry out: `catalogue` is the server's dataset folder, `devices` one folder a node.

    `node` is the kind of nodes to start, by the executor that starts any. `publish` says whether a server shows the best model
    to whoever asks, and `forever` that the run goes on until it is stopped. `continues` is the folder of the run that this one
    goes on from, if any, and `first` its round that this one begins after.
    """

    settings: Settings
    catalogue: Path
    devices: tuple[Path, ...]
    run_dir: Path
    resume: bool = False
    node: NodeKind = NodeKind.tessera
    publish: bool = False
    forever: bool = False
    continues: Path | None = None
    first: int = 0


class Executor(Protocol):
    """One way to carry out a job. Raises `RunError` with the reason when the run fails."""

    def __call__(self, job: Job, report: Report) -> None:
        """Run `job` to its end."""
        ...
