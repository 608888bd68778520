"""Trains a federation on this machine, over any executor."""

import os
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from tessera.common.config.settings import EXECUTORS, Settings
from tessera.common.errors import ConfigError
from tessera.common.utils.folder_lock import hold_folder
from tessera.deploy.api.progress import RunDisplay
from tessera.deploy.api.result import Result
from tessera.deploy.api.settings import Config, load_config
from tessera.deploy.environment import NodeKind, quieten

RUNS = Path("runs")


def train(
    config: Settings | Config,
    data: str | os.PathLike[str] | None = None,
    *,
    executor: str = "inline",
    runs: str | os.PathLike[str] = RUNS,
    resume: bool = False,
    overwrite: bool = False,
    continues: str | os.PathLike[str] | None = None,
    node: str = NodeKind.tessera,
    progress: bool | Console = True,
) -> Result:
    """Train a federation with the settings `config`, as `tessera train` does, and return what it ended with.

    `data` is the dataset's folder or the one that holds it; TESSERA_DATA by default, and the demo shop needs none. `executor`
    is "inline" (this process), "ray" or "grpc" (separate processes, and `node` the kind of theirs). The run's folder is
    `runs`/NAME: `resume` goes on with the run there, `overwrite` replaces it. `continues` is a run, by its folder or its name
    below `runs`, with whose best round this one begins. `progress` is shown where the output is a terminal or a notebook or,
    with false, not at all.

    Raises `ConfigError`, `DataError` or `RunError`, each with what to do.
    """
    quieten()
    if executor not in EXECUTORS:
        raise ConfigError(f"executor {executor!r}: choose one of {', '.join(EXECUTORS)}")
    if node not in (kinds := [kind.value for kind in NodeKind]):
        raise ConfigError(f"node {node!r}: choose one of {', '.join(kinds)}")
    settings = config if isinstance(config, Settings) else load_config(config, executor=executor)
    console = progress if isinstance(progress, Console) else Console(highlight=False, quiet=not progress)
    from tessera.deploy.executors.run import find_run

    source = find_run(os.fspath(continues), Path(runs)) if continues else None
    where = Path(data) if data else None
    return _train(settings, executor, where, Path(runs), resume, overwrite, source, NodeKind(node), console)


def _train(
    settings: Settings,
    executor: str,
    data: Path | None,
    runs: Path,
    resume: bool,
    overwrite: bool,
    continues: Path | None,
    node: NodeKind,
    console: Console,
) -> Result:
    from tessera.deploy.executors.run import make_job, run_job
    from tessera.deploy.provisioning.datasets import prepared_dataset
    from tessera.server.run_folder import require

    run_dir = runs / settings.name
    if resume:
        require(run_dir, resume)  # before the lock makes a folder
    with RunDisplay(settings, console, run_dir, stage="preparing the data") as display:
        dataset = prepared_dataset(settings.data, data)
        if settings.strategy_spec.has_towers and not resume:
            from tessera.server.pretraining.fit_readers import ensure_towers

            display.stage = "preparing the towers"
            ensure_towers(dataset, settings, console.print)
        display.stage = "sharing people out to devices"
        with hold_folder(run_dir):
            job = replace(make_job(settings, dataset, run_dir, resume, overwrite, continues), node=node)
            display.begins_after(job.first)
            display.stage = "starting"
            record = run_job(job, executor, display.report)
    return Result(run_dir, settings, record)
