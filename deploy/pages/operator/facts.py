"""What the operator's page says of runs, from their own folders: figures and sums, as the run's metrics have them."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Settings
from tessera.common.errors import DataError, TesseraError
from tessera.common.metrics.names import ALL, COLD, NDCG, TEST, WARM, MetricName
from tessera.common.metrics.records import (
    AbandonedRecord,
    EvaluationRecord,
    Record,
    ResultRecord,
    RoundRecord,
    StatisticsRecord,
    read_records,
)
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.pages.operator.charts import Chart, Points, chart
from tessera.server.live.standing import Standing
from tessera.server.model_selection import criterion

LATEST = 12
"""Troubles that are shown, the newest."""


@dataclass(frozen=True)
class RunLook:
    """A run as its folder has it now. `metric` is what rounds are compared by."""

    name: str
    folder: Path
    state: str
    reason: str
    settings: Settings
    records: tuple[Record, ...]
    standing: Standing | None

    @classmethod
    def at(cls, folder: Path, name: str = "") -> "RunLook":
        """The run in a folder, called `name`, or as its folder is. Raises `TesseraError` where none has begun there."""
        if not (folder / "status.json").exists():
            raise DataError(f"{folder} holds no run that has begun")
        status, records = read_json(folder / "status.json"), tuple(read_records(folder))
        return cls(
            name or folder.name,
            folder,
            status["state"],
            status["reason"],
            load_settings(folder / "config.yaml"),
            records,
            Standing.read(folder),
        )

    @property
    def metric(self) -> MetricName:
        """What rounds are compared by."""
        return criterion(self.settings)

    @property
    def rounds(self) -> list[RoundRecord]:
        """Those that brought something."""
        return [line for line in self.records if isinstance(line, RoundRecord)]

    @property
    def evaluations(self) -> list[EvaluationRecord]:
        """What rounds reached."""
        return [line for line in self.records if isinstance(line, EvaluationRecord)]

    @property
    def round(self) -> int:
        """The last one."""
        return max((line.round for line in self.rounds), default=0)

    @property
    def best(self) -> tuple[int, float] | None:
        """The best round so far, and what it reached."""
        reached = [(one.round, one.scores[self.metric]) for one in self.evaluations if self.metric in one.scores]
        return max(reached, key=lambda one: one[1], default=None)

    @property
    def selected(self) -> int | None:
        """The round that a completed run selected."""
        return next((line.selected_round for line in self.records if isinstance(line, ResultRecord)), None)

    @property
    def began(self) -> StatisticsRecord | None:
        """Who was there when it began."""
        return next((line for line in self.records if isinstance(line, StatisticsRecord)), None)

    @property
    def bytes(self) -> float:
        """To nodes and from them, a round's, all nodes together."""
        last = self.rounds[-1:]
        return sum((line.bytes_down_per_node + line.bytes_up_per_node) * line.nodes for line in last)

    @property
    def dropped(self) -> dict[str, int]:
        """Answers that were not taken, by the kind of their fault, all rounds together."""
        found: Counter[str] = Counter()
        for line in self.records:
            found.update(getattr(line, "dropped", None) or {})
        return dict(found.most_common())

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


def charts(runs: Sequence[RunLook]) -> list[Chart]:
    """How runs go, side by side: loss, what is selected by, test figures, answers, seconds, bytes and epsilon by round."""

    def curves(of: Iterable[tuple[str, Points]]) -> dict[str, Points]:
        return dict(of)

    def rounds(field: str) -> dict[str, Points]:
        return curves(
            (
                run.name,
                [(line.round, float(value)) for line in run.rounds if (value := getattr(line, field)) is not None],
            )
            for run in runs
        )

    def scores(name: MetricName) -> dict[str, Points]:
        return curves(
            (run.name, [(one.round, one.scores[name]) for one in run.evaluations if name in one.scores]) for run in runs
        )

    metric, k = runs[0].metric, max(runs[0].settings.evaluation.ks)
    wanted = [
        ("training loss", rounds("loss")),
        (f"{metric}, % (rounds are selected by it)", scores(metric)),
        *(
            (f"test NDCG@{k}, {group} targets, %", scores(MetricName(TEST, group, NDCG, k)))
            for group in (ALL, WARM, COLD)
        ),
        ("nodes that answered", rounds("nodes")),
        ("seconds a round", rounds("seconds")),
        ("bytes up, a node and round", rounds("bytes_up_per_node")),
        ("epsilon", rounds("epsilon")),
    ]
    return [one for title, lines in wanted if (one := chart(title, lines))]


def runs_in(folder: Path) -> dict[str, Path]:
    """The folders of runs below a folder by their paths from there, the newest first; those of grids too."""
    found = {path.parent for depth in ("*", "*/*", "*/*/*", "*/*/*/*") for path in folder.glob(f"{depth}/status.json")}
    newest = sorted(found, key=lambda path: (path / "status.json").stat().st_mtime, reverse=True)
    return {str(path.relative_to(folder)): path for path in newest}


def looks(folders: Mapping[str, Path]) -> list[RunLook]:
    """The runs in folders by name; one that cannot be read now is left out, such as one that is being removed."""
    found = []
    for name, folder in folders.items():
        with suppress(TesseraError, OSError):
            found.append(RunLook.at(folder, name))
    return found
