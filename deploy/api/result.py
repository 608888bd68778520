"""What a run ended with, as programs and notebooks see it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.common.config.settings import Settings
from tessera.common.errors import DataError
from tessera.common.metrics.names import HR, NDCG, TEST, Scores, written
from tessera.common.metrics.records import ResultRecord
from tessera.common.utils.text.html import html_table
from tessera.deploy.api.display import methods, privacy_line, summary
from tessera.server.live.run_info import DEVICES, RunInfo, devices_of
from tessera.server.run_folder import read_status

if TYPE_CHECKING:
    import polars as pl

    from tessera.client.people.device import Device

LEFT_OUT = {"kind", "version", "troubles", "dropped", "scores"}
"""Fields of a round's line that are no figures."""


@dataclass(frozen=True)
class Result:
    """A completed run: its folder, its settings, and the last line of its metrics."""

    path: Path
    config: Settings
    record: ResultRecord

    @classmethod
    def load(cls, run_dir: str | os.PathLike[str]) -> "Result":
        """Read a run's folder. Raises `DataError` where the run did not come to its end, or there is none."""
        run = RunInfo.read(Path(run_dir))
        return cls(run.folder, run.settings, run.record)

    @property
    def selected_round(self) -> int | None:
        """The round that validation selected."""
        return self.record.selected_round

    @property
    def scores(self) -> dict[str, float]:
        """Figures of that round by name, such as "test/all/ndcg@50", in %."""
        return written(self.record.scores)

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The same figures of the trivial rankings, by their names, such as "popularity"."""
        found: dict[str, Scores] = {}
        for name, value in self.record.baselines.items():
            found.setdefault(name.baseline, {})[name.of("")] = value
        return {name: written(scores) for name, scores in found.items()}

    @property
    def figures(self) -> dict[str, Any]:
        """Scores, baselines, bytes, seconds and epsilon, as `tessera train` prints them in one line of JSON."""
        return summary(self.record)

    @property
    def rounds(self) -> "pl.DataFrame":
        """One row a round that brought something: loss, people, nodes, bytes, seconds, and the scores of its evaluation."""
        import polars as pl

        run = RunInfo.read(self.path)
        scores = {line.round: written(line.scores) for line in run.evaluations}
        rows = [line.model_dump(exclude=LEFT_OUT) | scores.get(line.round, {}) for line in run.rounds]
        return pl.DataFrame(rows, infer_schema_length=None)

    @property
    def devices(self) -> tuple[Path, ...]:
        """The folders of its devices, where they were on this machine."""
        return devices_of(self.path)

    def device(self, number: int = 0) -> "Device":
        """Open one of its devices. Raises `DataError` where there is no such device on this machine."""
        from tessera.client.people.device import Device

        if not 0 <= number < len(self.devices):
            raise DataError(f"{self.path / DEVICES} holds {len(self.devices)} devices: there is no device {number}")
        return Device.open(self.devices[number], read_status(self.path).run)

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r}, round {self.selected_round} of {self.record.rounds})"

    def _repr_html_(self) -> str:
        if self.config.asks_questions:
            return html_table(str(self.path), ("figure", "%"), list(self.scores.items()))
        names = [name for name in self.record.scores if name.part == TEST and name.group == "all" and name.k]
        names.sort(key=lambda name: ((HR, NDCG).index(name.metric) if name.metric in (HR, NDCG) else 2, name.k or 0))
        rows = [(row, *(scores.get(name, "-") for name in names)) for row, scores in methods(self.record).items()]
        columns = ("method", *(name.measure for name in names))
        return html_table(f"{self.path}: test, in %", columns, rows, privacy_line(self.record, self.config))
