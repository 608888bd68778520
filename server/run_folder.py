"""A run's folder: its resolved settings, its metrics as JSON lines, and checkpoints of its last rounds and of its best one.

config.yaml  origin.json  status.json  metrics.jsonl  checkpoints/round-000012.safetensors

origin.json says which catalogue the tensors are about, and which run this one continues, if any.
"""

import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple
from uuid import uuid4

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import CatalogueVersion
from tessera.common.errors import ConfigError, DamagedError, DataError, RunError, StorageError
from tessera.common.metrics.records import (
    FILE,
    AbandonedRecord,
    BaselinesRecord,
    EvaluationRecord,
    Record,
    ResultRecord,
    RoundRecord,
    read_records,
    write_line,
)
from tessera.common.protocol.messages import Ancestor
from tessera.common.utils.atomic_files import (
    read_json,
    read_metadata,
    read_tensors,
    storing,
    sweep,
    write_bytes,
    write_json,
    write_tensors,
)
from tessera.server.live import stopping
from tessera.server.model_selection import Best

if TYPE_CHECKING:
    from tessera.common.protocol.tensors import Tensors

log = logging.getLogger("tessera.server")
ORIGIN, STATUS = "origin.json", "status.json"
State = Literal["running", "completed", "failed"]
N_CHECKPOINTS_KEPT = 3
Report = Callable[[Record], None]
"""Called with each line of a run's metrics as it is written."""
MAY_CHANGE = frozenset({"rounds", "device", "federation", "simulation", "tracking"})


class Status(BaseModel):
    """What devices know a run by, how it stands, and why it failed."""

    model_config = ConfigDict(frozen=True)

    run: str
    state: State
    reason: str = ""


class Progress(BaseModel):
    """What a resumed run cannot find out again; it lies in every checkpoint, beside the strategy's tensors."""

    model_config = ConfigDict(frozen=True)

    best: Best | None
    told: int
    """The best round that the clients have heard of."""
    due: int
    """The round whose evaluation is still to come; 0 for none."""
    seconds: float
    trained: int = 0
    """How often training was asked for, whatever came of it: what the account of epsilon counts."""
    n_placed: int | None = None
    """How many items, the first ones, have learnt, where a sum over people is still to place the others; None: nothing is."""


class Origin(BaseModel):
    """Which version of the catalogue a run is about, and the runs that it goes on from, the nearest first."""

    model_config = ConfigDict(frozen=True)

    catalogue: CatalogueVersion
    continues: tuple[Ancestor, ...] = ()


class Start(NamedTuple):
    """What a run begins with that continues others: its catalogue, their last round, the tensors, what is known of it, and
    which runs they are."""

    catalogue: CatalogueVersion
    round: int
    tensors: "Tensors"
    progress: Progress
    continues: tuple[Ancestor, ...]


@dataclass
class RunFolder:
    """One run's folder, open for writing. `run` tells this run's private states on the devices from another's.

    `repeated` is how many rounds that were asked for, at most, a resumed run does again: devices have told of these already.
    `published` is where the best model is published, if anywhere, and `pictures` the dataset whose pictures go along. `origin`
    is not known of runs of older versions.
    """

    path: Path
    run: str
    listener: Report | None = None
    repeated: int = 0
    published: Path | None = None
    pictures: Path | None = None
    origin: Origin | None = None

    @classmethod
    def create(cls, path: Path, settings: Settings, start: Start | None = None) -> "RunFolder":
        """Start a new run, from the `start` if it continues others. Raises `RunError` when the folder holds one already."""
        require(path, resume=False)
        sweep(path)
        folder = cls(path, f"{settings.name}-{uuid4().hex[:8]}")
        (path / ORIGIN).unlink(missing_ok=True)
        for left in folder._rounds():  # of a run that never began
            folder.checkpoint(left).unlink()
        if start:
            folder._note(Origin(catalogue=start.catalogue, continues=start.continues))
            folder.save(start.round, start.tensors, start.progress)
        stopping.forget(path)
        folder.status("running")  # before config.yaml, which says that there is a run
        write_bytes(path / "config.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False).encode())
        return folder

    @classmethod
    def reopen(cls, path: Path, settings: Settings) -> "RunFolder":
        """Go on with a run. Raises `ConfigError` when its settings differ in more than rounds, device and federation."""
        require(path, resume=True)
        before, now = load_settings(path / "config.yaml").model_dump(), settings.model_dump()
        changed = [name for name in before | now if before.get(name) != now.get(name) and name not in MAY_CHANGE]
        if changed:
            raise ConfigError(
                f"{path} was run with another {changed[0]!r}; a resumed run may change only {', '.join(sorted(MAY_CHANGE))}"
            )
        folder = cls.look(path)
        sweep(path)
        sweep(path / "checkpoints")
        stopping.forget(path)
        folder.status("running")
        return folder

    @classmethod
    def look(cls, path: Path) -> "RunFolder":
        """A run's folder, to read from."""
        folder = cls(path, read_status(path).run)
        if (path / ORIGIN).exists():
            folder.origin = Origin.model_validate(read_json(path / ORIGIN))
        return folder

    @property
    def continues(self) -> tuple[Ancestor, ...]:
        """The runs that this one goes on from, the nearest first."""
        return self.origin.continues if self.origin else ()

    @property
    def first(self) -> int:
        """The round that the run began after: 0, or the last one of the run that it continues."""
        return self.continues[0].round if self.continues else 0

    def is_about(self, now: CatalogueVersion) -> None:
        """Note which catalogue the run is about. Raises `RunError` where it was begun on another version."""
        if self.origin is None:
            self._note(Origin(catalogue=now))
        elif self.origin.catalogue.sha256 != now.sha256:
            before = self.origin.catalogue.n_items
            raise RunError(
                f"{self.path} was begun on another version of the catalogue ({before} items, now {now.n_items}): go on with "
                "that one, or begin a new run that continues this one by --continue"
            )

    def _note(self, origin: Origin) -> None:
        self.origin = origin
        write_json(self.path / ORIGIN, origin.model_dump(mode="json"))

    def status(self, state: State, reason: str = "") -> None:
        """Record whether the run is running, completed or failed, and why."""
        log.info("run %s: %s%s", self.run, state, f": {reason}" if reason else "")
        write_json(self.path / STATUS, Status(run=self.run, state=state, reason=reason).model_dump(mode="json"))

    def fail(self, reason: str) -> None:
        """Record why the run failed, unless the disk that it failed for has no room for that either."""
        with suppress(StorageError):
            self.status("failed", reason)

    def report(self, line: Record) -> None:
        """Append one line to the metrics."""
        path = self.path / FILE
        with storing(path), path.open("a", encoding="utf-8") as file:
            file.write(write_line(line))
        log.info("%s", line.sentence())
        if self.listener:
            self.listener(line)

    def save(self, round: int, tensors: "Tensors", progress: Progress) -> None:
        """Write the checkpoint of `round`; drop those that neither a resumed run nor the best round needs."""
        write_tensors(self.checkpoint(round), tensors, {"progress": progress.model_dump_json()})
        self._drop(round)

    def load(self) -> "tuple[int, Progress, Tensors] | None":
        """Read the newest checkpoint that is whole, as (round, progress, tensors); a corrupt one is skipped with a warning.

        What was reported after that round is taken out of the metrics: those rounds will run again. Raises `RunError` when
        there are checkpoints, but none is whole; then nothing is changed.
        """
        if found := self.newest():
            self._forget_after(*found[:2])
            return found
        if rounds := self._rounds():
            names = ", ".join(self.checkpoint(round).name for round in rounds)
            raise RunError(
                f"none of the checkpoints {names} in {self.path / 'checkpoints'} is whole: restore one from a backup, or "
                "begin the run again in another folder"
            )
        self._forget_after(-1)
        return None

    def newest(self) -> "tuple[int, Progress, Tensors] | None":
        """Read the newest checkpoint that is whole, and change nothing; a corrupt one is skipped with a warning."""
        for round in reversed(self._rounds()):
            try:
                tensors, metadata = read_tensors(self.checkpoint(round))
                return round, Progress.model_validate_json(metadata["progress"]), tensors
            except (DamagedError, KeyError, ValueError) as error:
                log.warning("checkpoint of round %d is skipped: %s", round, error)
        return None

    def _forget_after(self, round: int, progress: Progress | None = None) -> None:
        before = read_records(self.path)
        ended = (BaselinesRecord, ResultRecord)
        lines = [line for line in before if not isinstance(line, ended) and line.round <= round]
        if round <= self.first:  # it begins again, and tells all of it again
            lines = []
        elif progress:
            lines = [line for line in lines if not self._comes_again(line, progress)]
        asked = [line for line in before if isinstance(line, RoundRecord | AbandonedRecord) and line.round > round]
        self.repeated = len(asked) + 1 if before else 0  # with one that may have been under way
        if lost := [line.round for line in before if isinstance(line, RoundRecord) and line.round > round]:
            log.warning("rounds after %d, up to %d, run again: there is no checkpoint of them", max(round, 0), lost[-1])
        write_bytes(self.path / FILE, "".join(map(write_line, lines)).encode())
        self._drop(round)

    def _comes_again(self, line: Record, progress: Progress) -> bool:
        """Whether a line says what was not known yet when a checkpoint was written, and will be asked again."""
        return isinstance(line, EvaluationRecord) and 0 < progress.due <= line.round

    def _drop(self, newest: int) -> None:
        """Remove the checkpoints after `newest`; up to it keep the last three, each with the round that was best by then.

        So the best round is there whichever of the three a run can go on from.
        """
        last = [round for round in self._rounds() if round <= newest][-N_CHECKPOINTS_KEPT:]
        kept = {*last, *(best.round for best in map(self._best_by, last) if best)}
        for other in self._rounds():
            if other not in kept:
                self.checkpoint(other).unlink()

    def best(self) -> Best | None:
        """The best round as of the newest checkpoint; None where there was none, or it cannot be read."""
        return self._best_by(rounds[-1]) if (rounds := self._rounds()) else None

    def _best_by(self, round: int) -> Best | None:
        with suppress(DataError, KeyError, ValueError):
            return Progress.model_validate_json(read_metadata(self.checkpoint(round))["progress"]).best
        return None

    def holds(self, round: int) -> bool:
        """Whether there is a checkpoint of a round."""
        return self.checkpoint(round).exists()

    def durable(self) -> tuple[int, ...]:
        """Rounds there are checkpoints of; a run that never saved one would begin again, before round 1."""
        return tuple(self._rounds()) or (0,)

    def _rounds(self) -> list[int]:
        names = (
            re.fullmatch(r"round-(\d{6})\.safetensors", path.name) for path in (self.path / "checkpoints").glob("*")
        )
        return sorted(int(name.group(1)) for name in names if name)

    def checkpoint(self, round: int) -> Path:
        """The file of a round's checkpoint."""
        return self.path / "checkpoints" / f"round-{round:06d}.safetensors"


def require(path: Path, resume: bool) -> None:
    """Raise `RunError` unless `path` holds a run to resume or, to start one, none."""
    there = (path / "config.yaml").exists()
    if resume and not there:
        raise RunError(f"{path} holds no run to resume")
    if there and not resume:
        raise RunError(f"{path} holds a run already: go on with it by --resume, or replace it by --overwrite")


def read_status(path: Path) -> Status:
    """How the run in a folder stands by its own word. Raises `DataError` where none has begun there."""
    if not (path / STATUS).exists():
        raise DataError(f"{path} holds no run that has begun")
    try:
        return Status.model_validate(read_json(path / STATUS))
    except ValidationError as error:
        raise DataError(f"{path / STATUS} is damaged ({error.errors()[0]['msg']}): restore it") from None
