"""What a tracker is, and the scalars in a line of the metrics."""

from typing import Protocol

from tessera.common.metrics.records import EvaluationRecord, Record, ResultRecord, RoundRecord

OF_ROUNDS = (
    "loss", "users", "nodes", "seconds", "epsilon", "bytes_down_per_user", "bytes_up_per_user", "bytes_down_per_node",
    "bytes_up_per_node",
)  # fmt: skip


class Tracker(Protocol):
    """Is told of one run."""

    def line(self, line: Record) -> None:
        """Something was reported."""

    def end(self, state: str) -> None:
        """The run is over: completed or failed."""


def scalars(line: Record) -> tuple[int, dict[str, float]]:
    """The round of a line, and its figures by name: of a round "round/loss" and others, of an evaluation its scores."""
    if isinstance(line, RoundRecord):
        found = {f"round/{name}": getattr(line, name) for name in OF_ROUNDS}
        return line.round, {name: float(value) for name, value in found.items() if value is not None}
    if isinstance(line, EvaluationRecord):
        return line.round, {str(name): value for name, value in line.scores.items() if not name.counts}
    if isinstance(line, ResultRecord):
        scores = {f"selected/{name}": value for name, value in line.scores.items() if not name.counts}
        return line.rounds, scores | {
            f"baseline/{name}": value for name, value in line.baselines.items() if not name.counts
        }
    return 0, {}
