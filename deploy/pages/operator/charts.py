"""How runs go, as curves of small pictures that a template draws as SVG: no library of plots is needed to look at a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tessera.common.metrics.names import ALL, COLD, NDCG, TEST, WARM, MetricName
from tessera.server.live.run_info import RunInfo
from tessera.server.model_selection import criterion

WIDTH, HEIGHT = 320, 120
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve: its name, its points as SVG has them, "x,y x,y ...", and its last value."""

    name: str
    points: str
    last: float


@dataclass(frozen=True)
class Chart:
    """Curves over the same rounds, and what their edges mean."""

    title: str
    lines: tuple[Line, ...]
    first: float
    last: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """What is to be seen."""
        said = ", ".join(f"{line.name} {line.last:.4g}" for line in self.lines)
        return f"{self.title}, rounds {self.first:g} to {self.last:g}, from {self.low:.4g} to {self.high:.4g}; last: {said}"


def chart(title: str, curves: Mapping[str, Points]) -> Chart | None:
    """Scale curves of (round, value) into one picture; None where there is no point at all."""
    every = [point for points in curves.values() for point in points]
    if not every:
        return None
    rounds, values = zip(*every, strict=True)
    first, last, low, high = min(rounds), max(rounds), min(values), max(values)

    def placed(points: Points) -> str:
        x = [(round - first) / ((last - first) or 1) * WIDTH for round, _ in points]
        y = [HEIGHT - (value - low) / ((high - low) or 1) * HEIGHT for _, value in points]
        return " ".join(f"{one:.1f},{other:.1f}" for one, other in zip(x, y, strict=True))

    lines = tuple(Line(name, placed(points), points[-1][1]) for name, points in curves.items() if points)
    return Chart(title, lines, first, last, low, high)


def charts(runs: Sequence[RunInfo]) -> list[Chart]:
    """How runs go, side by side: loss, what is selected by, test figures, answers, seconds, bytes and epsilon by round.

    Raises `DataError` where one has not begun.
    """
    metric, k = criterion(runs[0].settings), max(runs[0].settings.evaluation.ks)
    wanted: dict[str, str | MetricName] = {"training loss": "loss", f"{metric}, % (rounds are selected by it)": metric}
    for group in (ALL, WARM, COLD):
        wanted[f"test NDCG@{k}, {group} targets, %"] = MetricName(TEST, group, NDCG, k)
    wanted |= {"nodes that answered": "nodes", "seconds a round": "seconds"}
    wanted |= {"bytes up, a node and round": "bytes_up_per_node", "epsilon": "epsilon"}
    found = (chart(title, {run.name: run.curve(of) for run in runs}) for title, of in wanted.items())
    return [one for one in found if one]
