"""Carries out what `flwr run .` asks for: `tessera train`, started as Flower's users start an app.

pyproject.toml names this ServerApp, and its run config below `[tool.flwr.app.config]`. In Flower's simulation it shares the
dataset's users out to the simulated nodes; on a SuperLink it waits for devices, whose folders are their own.
"""

import json
import shlex
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Console

from tessera.common.errors import ConfigError, RunError
from tessera.common.utils.folder_lock import SERVING, hold_folder
from tessera.common.utils.parent_death import tether
from tessera.deploy.environment import quieten

if TYPE_CHECKING:
    from tessera.common.config.settings import Settings
    from tessera.deploy.job import Job

WIDTH = 100
"""Columns of the table: Flower's log knows of no terminal."""


class RunConfig(BaseModel):
    """The run config of `flwr run .`. Each key has its default in pyproject.toml: Flower takes no others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: Path
    """Settings of the run, YAML: a file of the app's bundle, or an absolute path where the server runs."""
    set: str
    """Changes of settings, KEY=VALUE, with spaces between."""
    data: str
    """The dataset's folder, or the one that holds it; "" for TESSERA_DATA. The generated shop needs neither."""
    runs: Path
    """Folder the runs lie in; a relative one lies where the SuperLink was started."""
    admitted: str
    """The list of devices that an operator signed, an absolute path on the server; "" where none did."""
    resume: bool
    """Whether to go on with a run that was stopped or killed."""
    overwrite: bool
    """Whether to replace a run of the same name."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> "RunConfig":
        """Check a run config. Raises `ConfigError` that names each bad key."""
        try:
            return cls.model_validate(dict(config))
        except ValidationError as error:
            problems = "; ".join(f"{problem['loc'][0]}: {problem['msg']}" for problem in error.errors())
            raise ConfigError(f"run config: {problems}") from None

    def settings(self, bundle: Path, executor: str, n_nodes: int | None) -> "Settings":
        """Read the settings as `tessera train` does for an executor, with as many nodes as there are. Raises `ConfigError`."""
        from tessera.common.config.loading import load_settings

        if not self.config.is_absolute() and not (bundle / self.config).is_file():
            raise ConfigError(
                f"run config: {self.config} is not in the app's bundle, which holds benchmarks/**/*.yaml alone (fab-include in "
                "pyproject.toml): put your settings there, or name them by an absolute path where the server runs"
            )
        try:
            changes = shlex.split(self.set)
        except ValueError as error:
            raise ConfigError(f"run config: set={self.set!r}: {error}") from None
        nodes = [] if n_nodes is None else [f"federation.nodes={n_nodes}"]
        return load_settings(bundle / self.config, executor, [*changes, *nodes])

    def list_of_devices(self) -> Path | None:
        """Where the operator's list lies. Raises `ConfigError` where it is named and is not there."""
        if not self.admitted:
            return None
        path = Path(self.admitted).expanduser()
        if not path.is_absolute() or not path.is_file():
            raise ConfigError(
                f"run config: admitted={self.admitted!r} is no file by its absolute path where the server runs; "
                "`tessera federate sign` makes it"
            )
        return path


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Prepare the data, train, and print the table with its baselines and a line of JSON."""
    tether()  # Flower's own watch of the parent does not wake a ServerApp that waits for a server that is gone
    quieten()
    from tessera.common.flower_internals.grid import bundle_folder, is_simulated
    from tessera.deploy.flower.simulation import n_simulated, simulated_nodes
    from tessera.server.run_folder import require

    asked = RunConfig.read(context.run_config)
    simulated = is_simulated(grid)
    settings = asked.settings(bundle_folder(grid), *(("ray", n_simulated(grid)) if simulated else ("grpc", None)))
    run_dir = asked.runs.expanduser().absolute() / settings.name
    admitted = asked.list_of_devices()
    if (run_dir / "config.yaml").exists() and not asked.resume and not asked.overwrite:
        raise RunError(
            f'{run_dir} holds a run already: name this one otherwise (set="name=..."), or say overwrite=true to replace that '
            "one, resume=true to go on with it"
        )
    if asked.resume:
        require(run_dir, resume=True)  # before the lock makes a folder
    with hold_folder(run_dir):
        job = prepare(asked, settings, run_dir, simulated)
        with simulated_nodes(grid, context.run_id, job.devices) if simulated else nullcontext(grid) as nodes:
            carry_out(nodes, job, admitted)


def prepare(asked: RunConfig, settings: "Settings", run_dir: Path, simulated: bool) -> "Job":
    """Find or convert the dataset, and share it out to simulated nodes; real ones have their folders."""
    from tessera.deploy.executors.run import make_job, make_way
    from tessera.deploy.job import Job
    from tessera.deploy.provisioning.datasets import prepared_dataset

    data = Path(asked.data).expanduser() if asked.data else None
    dataset = prepared_dataset(settings.data, data, run_dir.parent.parent / "prepared")
    if simulated:
        if settings.strategy_spec.has_towers and not asked.resume:
            from tessera.server.pretraining.fit_readers import ensure_towers

            ensure_towers(dataset, settings, print)
        return make_job(settings, dataset, run_dir, asked.resume, asked.overwrite)
    make_way(run_dir, asked.resume, asked.overwrite)
    return Job(settings, dataset.absolute(), (), run_dir, asked.resume)


def carry_out(grid: Grid, job: "Job", admitted: Path | None = None) -> None:
    """Train over `grid`, and print what it ended with."""
    from tessera.common.metrics.records import read_result
    from tessera.deploy.api.display import show_result, summary
    from tessera.deploy.api.progress import RunDisplay
    from tessera.server.app import serve

    console = Console(highlight=False, width=WIDTH)
    with hold_folder(job.run_dir, SERVING), RunDisplay(job.settings, console, job.run_dir) as display:
        serve(grid, job.settings, job.catalogue, job.run_dir, job.resume, display.report, admitted)
    result = read_result(job.run_dir)
    show_result(console, result, job.settings, job.run_dir)
    print(json.dumps(summary(result)), flush=True)
