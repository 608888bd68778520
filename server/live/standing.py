"""What a run is at in this moment, for whoever shows it: standing.json in its folder, rewritten as nodes answer."""

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.config.settings import Settings
from tessera.common.errors import DataError, StorageError
from tessera.common.protocol.messages import Kind, Task
from tessera.common.utils.atomic_files import read_json, write_json

FILE = "standing.json"
PAUSE = 1.0
"""Seconds from one writing to the next, as long as nothing new is asked."""


class Standing(BaseModel):
    """What nodes are asked, and how many have answered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind | Literal["start"]
    """What is asked; start: nodes are waited for."""
    round: int = 0
    also: tuple[Kind, ...] = ()
    """What is asked along."""
    times: int = 1
    """How often the same kind of thing has been asked, this time included."""
    answered: int = 0
    asked: int = 0
    """How many nodes are asked; 0 while they are waited for."""

    def words(self, settings: Settings, last: int | None = None) -> str:
        """It as a person says it; `last` is the last round, where there is one."""
        if self.kind == "start":
            return f"waiting for nodes, {self.answered} of {self.asked} online"
        heard = f"{self.answered} of {self.asked} nodes answered" if self.asked else "waiting for nodes"
        return f"{self._asking(settings, last)}, {heard}"

    def _asking(self, settings: Settings, last: int | None) -> str:
        if self.kind == "train":
            of = "" if last is None else f"/{last}"
            return f"round {self.round}{of}, {'evaluation and training' if self.also else 'training'}"
        if self.kind == "power" and self.round:
            return "placing new items"
        if self.kind == "power":
            return f"spectral start {self.times}/{settings.views.spectral_rounds}"
        if self.kind == "aspects" and self.round:
            return "dividing people into groups"
        if self.kind == "evaluate":
            return f"evaluation of round {self.round}"
        return {"item_statistics": "statistics", "aspects": "finding facets", "baselines": "baselines"}.get(
            self.kind, "telling the selected round"
        )

    @staticmethod
    def read(run_dir: Path) -> "Standing | None":
        """Where the run in a folder stands; None where it does not say."""
        with suppress(DataError, ValidationError):
            return Standing.model_validate(read_json(run_dir / FILE))
        return None


class Standings:
    """Writes down where a run stands, in its folder; without one nothing is written."""

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir
        self.now = Standing(kind="start")
        self._times = Counter[str]()
        self._written = 0.0

    def start(self, online: int, nodes: int) -> None:
        """So many of the nodes that a run begins with are online."""
        self._note(Standing(kind="start", answered=online, asked=nodes), new=not self._written)

    def ask(self, task: Task) -> None:
        """Something is to be asked; which nodes is not known yet."""
        self._times[task.kind] += 1
        along = tuple(one.kind for one in task.also)
        self._note(Standing(kind=task.kind, round=task.round, also=along, times=self._times[task.kind]), new=True)

    def answered(self, answered: int, asked: int) -> None:
        """So many nodes of those that were asked have answered."""
        self._note(self.now.model_copy(update={"answered": answered, "asked": asked}), new=not answered)

    def end(self) -> None:
        """The run is at nothing any more."""
        if self.run_dir:
            (self.run_dir / FILE).unlink(missing_ok=True)

    def _note(self, now: Standing, new: bool) -> None:
        self.now = now
        if self.run_dir and (new or time.monotonic() > self._written + PAUSE):
            with suppress(StorageError):  # what counts is written elsewhere, and says so
                write_json(self.run_dir / FILE, now.model_dump(mode="json"), durable=False)
            self._written = time.monotonic()
