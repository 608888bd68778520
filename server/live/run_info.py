"""What a run's folder says of it, for whoever shows it: the commands, the pages, the report, the Python API."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.common.config.settings import Settings
from tessera.common.errors import DataError, TesseraError
from tessera.common.metrics.names import MetricName, written
from tessera.common.metrics.records import (
    FILE,
    AbandonedRecord,
    EvaluationRecord,
    Record,
    ResultRecord,
    RoundRecord,
    StatisticsRecord,
)
from tessera.common.utils.text.wording import number_of
from tessera.server.live.kept import Kept
from tessera.server.live.standing import Standing
from tessera.server.live.stopping import STOPPED
from tessera.server.model_selection import Best, criterion
from tessera.server.run_folder import STATUS, RunFolder, read_status

DEVICES = "devices"
DEPTH = 4
"""Folders between the one that runs lie in and a run: those of grids lie deeper."""
KEPT = Kept()
LATEST = 12
"""Troubles that are shown, the newest."""


@dataclass(frozen=True)
class RunInfo:
    """A run as its folder has it now. What it says of people is how many there are, and nothing of any one."""

    name: str
    folder: Path
    state: str = "submitted"
    """submitted (nothing of it is written yet), running, completed, failed or stopped."""
    reason: str = ""
    """Why it failed."""
    run: str = ""
    """What devices know the run by."""
    config: Settings | None = field(default=None, repr=False)
    """Its settings; None as long as it has not begun."""
    records: tuple[Record, ...] = field(default=(), repr=False)
    standing: Standing | None = None
    """What it is at in this moment, where it says so."""
    checkpointed: Best | None = field(default=None, repr=False)
    """The best round as of the newest checkpoint."""
    forever: bool = False
    """Whether it was submitted to go on until it is stopped."""

    @classmethod
    def read(cls, folder: Path, name: str = "") -> "RunInfo":
        """The run in a folder, called `name`, or as its folder is. Raises `DataError` where none has begun there."""
        status, records = read_status(folder), KEPT.records(folder)
        if not (folder / "config.yaml").exists():
            raise DataError(f"{folder} holds no run that has begun")
        return cls(
            name or folder.name,
            folder,
            "stopped" if status.reason == STOPPED else status.state,
            status.reason,
            status.run,
            KEPT.settings(folder),
            records,
            Standing.read(folder),
            RunFolder(folder, status.run).best(),
        )

    @property
    def settings(self) -> Settings:
        """How it was run. Raises `DataError` where it has not begun."""
        if self.config is None:
            raise DataError(f"{self.folder} holds no run that has begun")
        return self.config

    @property
    def metric(self) -> MetricName | None:
        """What rounds are compared by."""
        return criterion(self.config) if self.config else None

    @property
    def best(self) -> tuple[int, float] | None:
        """The best round so far, and what it reached by `metric`, in %; of a completed run the round that was selected."""
        if self.ended:
            round, scores = self.ended.selected_round, self.ended.scores
        elif self.checkpointed:
            round, scores = self.checkpointed.round, self.checkpointed.scores
        else:
            return None
        return (round, scores[self.metric]) if round and self.metric in scores else None

    @property
    def rounds(self) -> list[RoundRecord]:
        """Those that brought something."""
        return [line for line in self.records if isinstance(line, RoundRecord)]

    @property
    def evaluations(self) -> list[EvaluationRecord]:
        """What rounds reached."""
        return [line for line in self.records if isinstance(line, EvaluationRecord)]

    def curve(self, of: MetricName | str) -> list[tuple[int, float]]:
        """A figure by round, where it is known: one of the evaluations or, by its field, one of the rounds."""
        if isinstance(of, MetricName):
            return [(line.round, line.scores[of]) for line in self.evaluations if of in line.scores]
        found = ((line.round, getattr(line, of)) for line in self.rounds)
        return [(round, float(value)) for round, value in found if value is not None]

    @property
    def scores(self) -> dict[str, float]:
        """Figures of the last evaluation by name, such as "test/all/ndcg@50", in %."""
        return written(self.evaluations[-1].scores) if self.evaluations else {}

    @property
    def round(self) -> int:
        """The last one."""
        return self.rounds[-1].round if self.rounds else 0

    @property
    def nodes(self) -> int | None:
        """Nodes that answered it."""
        return self.rounds[-1].nodes if self.rounds else None

    @property
    def began(self) -> StatisticsRecord | None:
        """Who was there when it began."""
        return next((line for line in self.records if isinstance(line, StatisticsRecord)), None)

    @property
    def people(self) -> int | None:
        """How many of them there were to train."""
        return int(self.began.users) if self.began else None

    @property
    def sums(self) -> str:
        """Of whom the server reads sums alone, in words; "" where it reads each node's answers."""
        if self.began is None or not self.began.groups:
            return ""
        nodes, groups = self.began.nodes, self.began.groups
        sizes = sorted({nodes // groups, -(-nodes // groups)})  # groups are as even as can be
        told = f"{number_of(groups, 'group')} of {' to '.join(map(str, sizes))} devices"
        return f"secure sums: the server reads what {told} add{'s' * (groups == 1)} up to, and no device's own answer"

    @property
    def ended(self) -> ResultRecord | None:
        """What it ended with, if it did."""
        return next((line for line in reversed(self.records) if isinstance(line, ResultRecord)), None)

    @property
    def record(self) -> ResultRecord:
        """What it ended with. Raises `DataError` where it did not come to its end."""
        if self.ended is None:
            raise DataError(f"{self.folder / FILE} holds no result: the run did not come to its end")
        return self.ended

    @property
    def bytes(self) -> int:
        """To nodes and from them, all rounds and evaluations together."""
        traffic = [*self.rounds, *self.evaluations]
        return int(sum((line.bytes_down_per_node + line.bytes_up_per_node) * line.nodes for line in traffic))

    @property
    def dropped(self) -> dict[str, int]:
        """Answers that were not taken, by the kind of their fault, all rounds together."""
        found: Counter[str] = Counter()
        for line in self.records:
            found.update(getattr(line, "dropped", None) or {})
        return dict(found.most_common())

    @property
    def abandoned(self) -> list[AbandonedRecord]:
        """Rounds that came to nothing."""
        return [line for line in self.records if isinstance(line, AbandonedRecord)]

    @property
    def troubles(self) -> list[str]:
        """What was wrong, node by node, the newest first."""
        found = []
        for line in self.records:
            number = getattr(line, "round", 0)
            if isinstance(line, AbandonedRecord):
                found.append(f"round {number} came to nothing: {line.reason}")
            found += [f"round {number}: {trouble}" for trouble in getattr(line, "troubles", None) or ()]
        return found[::-1][:LATEST]

    @property
    def devices(self) -> tuple[Path, ...]:
        """The folders of its devices, where they are on this machine."""
        return devices_of(self.folder)

    def facts(self) -> dict[str, Any]:
        """The run as JSON knows it."""
        best = self.best or (None, None)
        return {
            "name": self.name, "folder": str(self.folder), "forever": self.forever, "state": self.state,
            "reason": self.reason, "round": self.round, "nodes": self.nodes, "people": self.people,
            "groups": self.began.groups if self.began else None, "metric": self.metric and str(self.metric),
            "best_round": best[0], "best": best[1],
            "selected_round": self.ended.selected_round if self.ended else None, "bytes": self.bytes,
            "dropped": self.dropped,
        }  # fmt: skip


def devices_of(run: Path) -> tuple[Path, ...]:
    """The folders of a run's devices, where they are on this machine."""
    return tuple(sorted((run / DEVICES).glob("node-*"), key=lambda path: int(path.name.rpartition("-")[2])))


def runs_in(folder: Path) -> dict[str, Path]:
    """The folders of runs below a folder by their paths from there, the newest first; those of grids too."""
    newest = sorted(_below(folder), reverse=True)
    return {str(path.relative_to(folder)): path for _, path in newest}


def _below(folder: Path, depth: int = DEPTH) -> Iterator[tuple[int, Path]]:
    """Folders of runs, each with the time that its state was written; what is in a run is not looked through."""
    with suppress(OSError):  # such as a folder that is being removed
        for path in folder.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError):
                yield (path / STATUS).stat().st_mtime_ns, path
                continue
            if depth > 1 and path.is_dir():
                yield from _below(path, depth - 1)


def read_runs(folders: Mapping[str, Path]) -> list[RunInfo]:
    """The runs in folders by name; one that cannot be read now is left out, such as one that is being removed."""
    found = []
    for name, folder in folders.items():
        with suppress(TesseraError, OSError):
            found.append(RunInfo.read(folder, name))
    return found
