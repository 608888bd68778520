"""How runs go, as curves of small pictures that a template draws as SVG: no library of plots is needed to look at a run."""

import math
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
    last: str


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
    def edges(self) -> str:
        """What the edges of the frame mean."""
        return f"{short(self.low)} to {short(self.high)}, rounds {self.first:g} to {self.last:g}"

    @property
    def words(self) -> str:
        """What is to be seen."""
        return f"{self.title}, {self.edges}; last: {', '.join(f'{line.name} {line.last}' for line in self.lines)}"


def chart(title: str, curves: Mapping[str, Points], floor: float = math.inf) -> Chart | None:
    """Scale curves of (round, value) into one picture, which shows `floor` too; None where there is no point at all."""
    every = [point for points in curves.values() for point in points]
    if not every:
        return None
    rounds, values = zip(*every, strict=True)
    first, last, low, high = min(rounds), max(rounds), min(floor, *values), max(values)

    def placed(points: Points) -> str:
        x = [(round - first) / ((last - first) or 1) * WIDTH for round, _ in points]
        y = [HEIGHT - (value - low) / ((high - low) or 1) * HEIGHT for _, value in points]
        return " ".join(f"{one:.1f},{other:.1f}" for one, other in zip(x, y, strict=True))

    lines = tuple(Line(name, placed(points), short(points[-1][1])) for name, points in curves.items() if points)
    return Chart(title, lines, first, last, low, high)


def charts(runs: Sequence[RunInfo]) -> list[Chart]:
    """How runs go, side by side: loss, what is selected by, test figures, answers, seconds, bytes and epsilon by round.

    Raises `DataError` where one has not begun.
    """
    metric, k = criterion(runs[0].settings), max(runs[0].settings.evaluation.ks)
    selected = f"{metric.part} {metric.measure.upper()}, % (selects)"
    scores = {selected: metric}
    scores |= {f"test NDCG@{k}, {group} targets, %": MetricName(TEST, group, NDCG, k) for group in (ALL, WARM, COLD)}
    amounts = {"nodes that answered": "nodes", "seconds a round": "seconds"}
    amounts |= {"bytes up, a node and round": "bytes_up_per_node", "epsilon": "epsilon"}

    def curves(of: MetricName | str) -> dict[str, Points]:
        return {run.name: run.curve(of) for run in runs}

    found = [chart("training loss", curves("loss"))]
    found += [chart(title, curves(name)) for title, name in scores.items()]
    found += [chart(title, curves(field), floor=0.0) for title, field in amounts.items()]
    return [one for one in found if one]


def short(value: float) -> str:
    """A number of four digits, such as 0.2908, 14.27 or 3,262,000."""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{round(value, 3 - math.floor(math.log10(abs(value)))):,.0f}"
