"""Tells which runs were submitted to a server, and what is known of each: what its folder notes, and the runs' own files.

submitted/NAME.json     the number that Flower gave the run, its folder, and whether it goes on until it is stopped
"""

import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.errors import DataError, RunError, TesseraError
from tessera.common.utils.atomic_files import read_json, write_json
from tessera.deploy.federation.superlink import Control, Server
from tessera.server.live.run_info import RunInfo

if TYPE_CHECKING:
    from tessera.deploy.job import Job

SUBMITTED = "submitted"


class SubmittedRun(BaseModel):
    """A run as it was submitted last under its name."""

    model_config = ConfigDict(frozen=True)

    name: str
    number: int
    """Flower's."""
    folder: Path
    forever: bool
    time: str
    """When, ISO 8601."""


def note_run(server: Server, job: "Job", number: int) -> None:
    """Note in a server's folder that a run was submitted."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    run = SubmittedRun(name=job.settings.name, number=number, folder=job.run_dir, forever=job.forever, time=now)
    write_json(server.folder / SUBMITTED / f"{run.name}.json", run.model_dump(mode="json"))


def submitted_runs(server: Server) -> list[SubmittedRun]:
    """The runs that were submitted to a server, the newest first. Raises `DataError` for a note that cannot be read."""
    found = []
    for path in (server.folder / SUBMITTED).glob("*.json"):
        try:
            found.append(SubmittedRun.model_validate(read_json(path)))
        except ValidationError as error:
            raise DataError(f"{path} is no note of a run ({error.errors()[0]['msg']}): remove it") from None
    return sorted(found, key=lambda run: run.time, reverse=True)


def submitted_run(server: Server, name: str) -> SubmittedRun:
    """The run of a name or, of those that go on for ever one after the other, the newest. Raises `RunError` that names those
    there are."""
    runs = submitted_runs(server)
    for run in runs:
        if run.name == name or (run.forever and re.fullmatch(rf"{re.escape(name)}-\d+", run.name)):
            return run
    known = ", ".join(run.name for run in runs) or "none"
    raise RunError(f"no run {name!r} was submitted to the server in {server.folder}; there are: {known}")


def submitted_info(run: SubmittedRun, control: Control | None) -> RunInfo:
    """What there is to know of a run: what its own files say and, where the server answers, what Flower says of one that may
    have been killed."""
    info = RunInfo(run.name, run.folder)
    with suppress(TesseraError):
        info = RunInfo.read(run.folder, run.name)
    if control and info.state in ("submitted", "running"):
        with suppress(TesseraError):
            flower = control.status(run.number)
            if flower.finished:
                info = replace(info, state="stopped", reason=flower.details or "its process ended; go on with --resume")
    return replace(info, forever=run.forever)
