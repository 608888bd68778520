"""Tells which runs were submitted to a server, and how each stands: from what was noted in its folder and the runs' own files.

submitted/NAME.json     the number that Flower gave the run, its folder, and whether it goes on until it is stopped
"""

import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.config.loading import load_settings
from tessera.common.errors import DataError, RunError, TesseraError
from tessera.common.metrics.records import EvaluationRecord, Record, RoundRecord, StatisticsRecord, read_records
from tessera.common.utils.atomic_files import read_json, read_metadata, write_json
from tessera.deploy.federation.superlink import Control, Server
from tessera.server.model_selection import criterion
from tessera.server.run_folder import STOPPED, Progress

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


class RunStands(BaseModel):
    """How a run stands. What is said of people is how many there are, and nothing of any one."""

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    forever: bool
    state: str
    """running, completed, failed or stopped."""
    reason: str
    round: int
    """The last one that was trained."""
    nodes: int
    """Nodes that answered it."""
    people: int
    """People who were there to train when it began."""
    groups: int | None
    """Groups of nodes whose sums are all that the server reads; None where it reads each node's answers."""
    best_round: int
    metric: str
    """By what rounds are compared."""
    best: float | None
    bytes: int
    """To nodes and from them, all rounds and evaluations together."""


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


def stands(run: SubmittedRun, control: Control | None) -> RunStands:
    """How a run stands, by its own files and, where the server answers, by what Flower says of one that may be killed."""
    state, reason, records = "submitted", "", list[Record]()
    with suppress(DataError):
        status = read_json(run.folder / "status.json")
        state, reason = str(status.get("state", "")), str(status.get("reason", ""))
        records = read_records(run.folder)
    if control and state in ("submitted", "running"):
        with suppress(TesseraError):
            flower = control.status(run.number)
            if flower.finished:
                state, reason = "stopped", flower.details or "its process ended; go on with --resume"
    state = "stopped" if reason == STOPPED else state
    rounds = [line for line in records if isinstance(line, RoundRecord)]
    people = [int(line.users) for line in records if isinstance(line, StatisticsRecord)]
    groups = [line.groups for line in records if isinstance(line, StatisticsRecord)]
    name, best_round, best = _best(run)
    traffic = [line for line in records if isinstance(line, RoundRecord | EvaluationRecord)]
    return RunStands(
        name=run.name,
        folder=run.folder,
        forever=run.forever,
        state=state,
        reason=reason,
        round=rounds[-1].round if rounds else 0,
        nodes=rounds[-1].nodes if rounds else 0,
        people=people[-1] if people else 0,
        groups=groups[-1] if groups else None,
        best_round=best_round,
        metric=name,
        best=best,
        bytes=int(sum((line.bytes_down_per_node + line.bytes_up_per_node) * line.nodes for line in traffic)),
    )


def _best(run: SubmittedRun) -> tuple[str, int, float | None]:
    """By what rounds are compared, the best one as of the newest checkpoint, and its figure."""
    name = ""
    with suppress(TesseraError, KeyError, ValueError):
        name = str(criterion(load_settings(run.folder / "config.yaml")))
        newest = max((run.folder / "checkpoints").glob("round-*.safetensors"))
        if best := Progress.model_validate_json(read_metadata(newest)["progress"]).best:
            return name, best.round, best.criterion
    return name, 0, None
