"""Shows a run while it goes on: a bar on a terminal, lines elsewhere; what it is at, who has answered, the time left."""

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tessera.common.config.settings import Settings
from tessera.common.metrics.records import (
    AbandonedRecord,
    EvaluationRecord,
    Record,
    RoundRecord,
    StatisticsRecord,
    told_epsilon,
)
from tessera.common.utils.logs import is_quiet
from tessera.common.utils.text.wording import number_of
from tessera.deploy.api.ticker import Ticker, clock
from tessera.server.live.standing import FILE, Standing
from tessera.server.model_selection import criterion

SHOWN = 3
"""Troubles of a round that are shown; all of them are in the metrics."""


class RunDisplay:
    """Shows the lines of a run's metrics as they come, and between them what the run is at: its phase, the nodes that have
    answered, the time left.

    On a terminal a bar moves; elsewhere each evaluation is a line of its own, and something is said at least every 30 s. With
    --quiet nothing is shown. `first` is the round after which the run begins that continues another one, and `stage` what is
    done before the run in `run_dir` says where it stands.
    """

    def __init__(
        self,
        settings: Settings,
        console: Console,
        run_dir: Path,
        first: int = 0,
        endless: bool = False,
        stage: str = "starting",
    ) -> None:
        self.settings, self.console = settings, Console(quiet=True) if is_quiet() else console
        self.run_dir, self.stage, self.endless = run_dir, stage, endless
        self._opened, self._began = time.time(), time.monotonic()
        self._rounds_from: tuple[float, int] | None = None
        self.criterion = criterion(settings)
        self.score, self.nodes = "-", settings.federation.nodes
        self.trained: RoundRecord | None = None
        self._rounds_at = self._began
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[phase]}"),
            TextColumn("{task.fields[facts]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task(settings.name, total=None, phase=stage, facts="")
        self.ticker = Ticker(self._say, self.line, self._look)
        self.begins_after(first)

    def begins_after(self, first: int) -> None:
        """Take note of the round after which the run begins."""
        self.last = None if self.endless else first + self.settings.rounds
        self.bar.update(self.task, total=self.last, completed=first)

    def __enter__(self) -> "RunDisplay":
        """Show the bar."""
        self.bar.start()
        if not self.console.quiet:
            self.ticker.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if not self.console.quiet:
            self.ticker.__exit__(kind, error, trace)
        self.bar.stop()

    def standing(self) -> Standing | None:
        """What the run is at; None where it does not say, or an earlier process of it did."""
        try:
            written = (self.run_dir / FILE).stat().st_mtime
        except OSError:
            return None
        return Standing.read(self.run_dir) if written >= self._opened - 1 else None

    def phase(self) -> str:
        """What the run is at, and how many nodes have answered."""
        now = self.standing()
        if now is None:
            return "ending" if self.trained else self.stage
        return now.words(self.settings, self.last)

    def line(self, now: float) -> str:
        """What is said when nothing else is; `now` is the time on the monotonic clock."""
        left = "" if self.endless else f", {self._left(now)}"
        return f"{self.phase()}; {clock(now - self._began)} passed{left}"

    def _left(self, now: float) -> str:
        """The time left for all rounds, by the mean of those so far."""
        if not self._rounds_from or not self.trained or self.last is None:
            return "time left not known yet"
        since, before = self._rounds_from
        mean = (self._rounds_at - since) / (self.trained.round - before)
        return f"about {clock(max(0.0, mean * (self.last - before) - (now - since)))} left"

    def _look(self) -> None:
        """Show on the bar what the run is at."""
        if self.console.is_terminal:
            self.bar.update(self.task, phase=self.phase())

    def _say(self, text: str) -> None:
        """Say a line, where no bar says it."""
        if not self.console.is_terminal:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            self.console.file.flush()

    def report(self, line: Record) -> None:
        """Take one line of the metrics in."""
        self.ticker.said()
        if isinstance(line, StatisticsRecord):
            self._begin(line)
        elif isinstance(line, AbandonedRecord):
            self.console.print(f"round {line.round} was abandoned: {line.reason}", markup=False)
        elif isinstance(line, RoundRecord):
            self._troubles(line)
            if line.nodes != self.nodes:
                told = f"round {line.round}: {number_of(line.nodes, 'node')} answered, not {self.nodes}; "
                told += f"{number_of(line.users, 'user')} took part"
                self.console.print(told, markup=False, highlight=False)
                self.nodes = line.nodes
            self.trained, self._rounds_at = line, time.monotonic()
            self._rounds_from = self._rounds_from or (self._rounds_at - line.seconds, line.round - 1)
            self._progress()
        elif isinstance(line, EvaluationRecord):
            self._troubles(line)
            self.score = f"{line.scores.get(self.criterion, 0):.2f}"
            self._progress()
            if self.trained and not self.console.is_terminal:
                of = "" if self.last is None else f"/{self.last}"
                told = f"round {line.round}{of}  {self._facts(self.trained)}  {self.trained.seconds:.2f} s"
                self._say(told)

    def _begin(self, line: StatisticsRecord) -> None:
        """Say who takes part."""
        people, events, self.nodes = int(line.users), int(line.events), line.nodes
        told = f"{number_of(people, 'user')} on {number_of(line.nodes, 'node')}"
        told += f", {number_of(events, 'training event')}; " if events else "; "
        if not line.groups:
            told += "only sums over a node's people are sent"
        else:
            told += "the server can read sums of "
            told += "all nodes alone" if line.groups == 1 else f"{line.groups} groups of nodes alone"
        if self.settings.asks_questions:
            told = f"{number_of(line.nodes, 'device')} with {number_of(events, 'question')} of their own; "
            told += "only adapters and signatures are sent"
        self.console.print(told, highlight=False)

    def _troubles(self, line: RoundRecord | EvaluationRecord) -> None:
        """Say what went wrong in a round, and who did not answer."""
        troubles = line.troubles or ()
        for trouble in troubles[:SHOWN]:
            self.console.print(f"round {line.round}: {trouble}", markup=False, highlight=False)
        if len(troubles) > SHOWN:
            told = f"round {line.round}: and {len(troubles) - SHOWN} more, in metrics.jsonl"
            self.console.print(told, highlight=False)

    def _progress(self) -> None:
        """Move the bar."""
        if self.trained:
            self.bar.update(self.task, completed=self.trained.round, facts=self._facts(self.trained))

    def _facts(self, line: RoundRecord) -> str:
        metric = "right on validation" if self.settings.asks_questions else f"ndcg@{self.criterion.k}"
        down, up = in_bytes(line.bytes_down_per_user), in_bytes(line.bytes_up_per_user)
        loss = "-" if line.loss is None else f"{line.loss:.3f}"
        told = f"loss {loss}  {metric} {self.score}%  a user's share {down} down {up} up"
        return f"{told}  epsilon {told_epsilon(line.epsilon)}"


def in_bytes(count: float) -> str:
    """Bytes in a unit that suits them."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
