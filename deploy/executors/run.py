"""Runs a federation: from settings to a run's result, over any executor."""

import logging
import shutil
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.errors import RunError, TesseraError
from tessera.common.metrics.records import ResultRecord, amend_result, read_result
from tessera.common.utils.folder_lock import SERVING, clear, hold_folder
from tessera.deploy.executors.alone import alone
from tessera.deploy.job import Executor, Job, Report
from tessera.deploy.provisioning.datasets import check_order
from tessera.deploy.provisioning.handing_on import hand_on
from tessera.deploy.provisioning.partition import device_folders, partition
from tessera.server.live.continuation import Source, read_source
from tessera.server.run_folder import RunFolder, read_status, require

log = logging.getLogger("tessera.deploy")
EXECUTORS = {
    "inline": "tessera.deploy.executors.inline",
    "ray": "tessera.deploy.executors.ray",
    "grpc": "tessera.deploy.executors.grpc",
}
DEVICES = "devices"


def make_job(
    settings: Settings, dataset: Path, run_dir: Path, resume: bool, overwrite: bool, continues: Path | None = None
) -> Job:
    """Lay out a run's folder: share the dataset's users out to device folders, or find those of the run to resume.

    With the folder of a run that this one `continues` people get what they were there. Raises, before anything is written,
    where it cannot be continued so.
    """
    n_nodes = settings.federation.nodes
    check_order(dataset, settings)
    source = require_source(continues, run_dir, settings, dataset) if continues and not resume else None
    make_way(run_dir, resume, overwrite)
    if resume:
        there = len(list((run_dir / DEVICES).glob("node-*")))
        if there != n_nodes:
            raise RunError(f"{run_dir} was run with {there} nodes, not {n_nodes}: resume it with --nodes {there}")
        folders = tuple(device_folders(run_dir / DEVICES, n_nodes))
    else:
        shutil.rmtree(run_dir / DEVICES, ignore_errors=True)  # of a run that never began
        folders = partition_for(dataset, run_dir / DEVICES, settings)
        if source:
            hand_on(source.path / DEVICES, folders, source.ancestors)
    job = Job(settings, dataset.absolute(), tuple(folder.absolute() for folder in folders), run_dir.absolute(), resume)
    if source:
        return replace(job, continues=source.path.absolute(), first=source.round)
    return replace(job, first=RunFolder.look(run_dir).first if resume else 0)


def require_source(continues: Path, run_dir: Path, settings: Settings, dataset: Path) -> Source:
    """The run to go on from. Raises `ConfigError` or `RunError` where a run with these settings and items cannot."""
    if continues.resolve() == run_dir.resolve():
        raise RunError(f"{run_dir} cannot continue itself: give the new run a name of its own (--set name=...)")
    source = read_source(continues)
    source.require(settings, load_catalogue(dataset, modalities=False))
    return source


def find_run(name: str, runs: Path) -> Path:
    """The folder of a run by its path, or by its name below `runs`."""
    return Path(name) if (Path(name) / "config.yaml").exists() else runs / name


def make_way(run_dir: Path, resume: bool, overwrite: bool) -> None:
    """Make sure that a run may use its folder: it is empty, holds the run to resume, or is emptied now. Raises `RunError`."""
    if resume and overwrite:
        raise RunError("--resume goes on with a run and --overwrite replaces it: pass one of them")
    if overwrite and (run_dir / "config.yaml").exists():
        with hold_folder(run_dir, SERVING):  # a ServerApp whose `submit` was killed may still be at it
            clear(run_dir)
    require(run_dir, resume)


def partition_for(dataset: Path, out: Path, settings: Settings) -> tuple[Path, ...]:
    """Share a dataset out to one device folder a node below `out`, with all that the settings' strategy needs there.

    Raises, before anything is written, `RunError` without PEFT and `DataError` without towers where the strategy needs them.
    """
    if not settings.strategy_spec.has_towers:
        return partition(dataset, out, settings.federation.nodes)
    prepare_towers(dataset, settings)
    from tessera.deploy.provisioning.towers import equip, partition_questions

    share_out = partition_questions if settings.asks_questions else partition
    folders = share_out(dataset, out, settings.federation.nodes)
    for node, folder in enumerate(folders):
        equip(dataset, folder, node, settings)
    return folders


def prepare_towers(dataset: Path, settings: Settings) -> None:
    """Give the towers of a dataset what a run begins with. Raises `RunError` without PEFT and `DataError` without towers."""
    if find_spec("peft") is None:
        raise RunError("towers are adapted by PEFT, which is not installed here: pip install 'peft==0.21.*'")
    from tessera.deploy.provisioning.towers import align

    align(dataset, settings)


def run_job(job: Job, executor: str, report: Report) -> ResultRecord:
    """Carry out a job and return its result. Raises `RunError` when it did not complete."""
    execute = cast(Executor, import_module(EXECUTORS[executor]).execute)
    execute(job, report)
    status = read_status(job.run_dir)
    if status.state != "completed":
        raise RunError(f"the run ended {status.state}: {status.reason}")
    result = read_result(job.run_dir)
    try:
        found = alone(job)
    except TesseraError as error:  # a run that has come to its end is not lost for it
        log.warning("what one person alone on a device sends is not known: %s", error)
        found = None
    return amend_result(job.run_dir, bytes_down_alone=found.down, bytes_up_alone=found.up) if found else result
