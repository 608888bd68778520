"""What a run is at is said at least every 30 s: the phase, who has answered, the time left."""

import re
import time
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from rich.console import Console

from tessera.common.config.device import DeviceSettings
from tessera.common.encoders import make_encoder
from tessera.common.metrics.records import RoundRecord, StatisticsRecord
from tessera.common.protocol.messages import Ask, Task
from tessera.deploy.api import ticker
from tessera.deploy.api.progress import RunDisplay
from tessera.deploy.api.ticker import SILENCE, Ticker, clock
from tessera.deploy.api.work import Counted, Work
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import InlineGrid
from tessera.server.app import serve
from tessera.server.live.standing import FILE, Standing, Standings
from tests.support.catalogues import small_job, small_settings

SETTINGS = small_settings(rounds=40, views={"dim": 8, "id_dim": 8, "spectral_rounds": 5}, federation={"nodes": 20})


def task(kind, round: int, *also) -> Task:
    return Task(kind, "run", round, (), (), "", DeviceSettings.of(SETTINGS), also=also)


def test_each_phase_is_said_with_those_who_answered(tmp_path: Path) -> None:
    display, standings = RunDisplay(SETTINGS, Console(file=StringIO()), tmp_path), Standings(tmp_path)
    said = [display.phase()]
    display.stage = "sharing people out to devices"
    said.append(display.phase())
    standings.start(2, 20)
    said.append(display.phase())
    for asked in (task("item_statistics", 0), task("power", 0), task("power", 0), task("train", 1)):
        standings.ask(asked)
        said.append(display.phase())
        standings.answered(0, 20)
        said.append(display.phase())
    for asked in (
        task("train", 6, Ask("evaluate", 5)),
        task("evaluate", 40),
        task("baselines", 40),
        task("select", 40),
    ):
        standings.ask(asked)
        standings.answered(0, 19)
        said.append(display.phase())
    assert said == [
        *("starting", "sharing people out to devices", "waiting for nodes, 2 of 20 online"),
        *("statistics, waiting for nodes", "statistics, 0 of 20 nodes answered"),
        *("spectral start 1/5, waiting for nodes", "spectral start 1/5, 0 of 20 nodes answered"),
        *("spectral start 2/5, waiting for nodes", "spectral start 2/5, 0 of 20 nodes answered"),
        *("round 1/40, training, waiting for nodes", "round 1/40, training, 0 of 20 nodes answered"),
        "round 6/40, evaluation and training, 0 of 19 nodes answered",
        *("evaluation of round 40, 0 of 19 nodes answered", "baselines, 0 of 19 nodes answered"),
        "telling the selected round, 0 of 19 nodes answered",
    ]
    standings.end()
    assert display.phase() == display.stage


def test_time_left_is_by_the_mean_of_the_rounds_so_far(tmp_path: Path) -> None:
    display = RunDisplay(SETTINGS, Console(file=StringIO()), tmp_path)
    assert "left not known" in display.line(display._began + 5)
    display.report(RoundRecord(round=1, nodes=20, seconds=10.0, users=60, loss=1.0))
    assert "about 6 min 30 s left" in display.line(display._rounds_at)
    assert "about 6 min 0 s left" in display.line(display._rounds_at + 30)
    assert "left" not in RunDisplay(SETTINGS, Console(file=StringIO()), tmp_path, endless=True).line(0.0)


def test_something_is_said_whenever_nothing_was_for_half_a_minute() -> None:
    said: list[str] = []
    ticker = Ticker(said.append, lambda now: f"at {now:.0f}")
    ticker._said, looked = 0.0, range(1, 200)
    for now in looked:
        ticker.look(float(now))
    moments = [int(text.removeprefix("at ")) for text in said]
    assert max(later - before for before, later in zip([0, *moments], [*moments, 200], strict=True)) <= SILENCE
    assert len(said) < 10
    ticker._said = 200.0
    ticker.look(201.0)
    assert len(said) == len(moments)


@pytest.mark.parametrize("secure", [False, True])
def test_a_run_writes_down_where_it_stands_in_every_phase(tmp_path: Path, secure: bool) -> None:
    """What devices find there when they are asked."""
    views, found = {"dim": 8, "id_dim": 8, "spectral_rounds": 2}, list[Standing]()
    job = small_job(tmp_path, "run", 3, rounds=2, views=views, privacy={"secure": secure})

    class Watching(InlineGrid):
        def _handle(self, message: Message) -> Message:
            now = Standing.read(job.run_dir)
            assert now
            found.append(now)
            return super()._handle(message)

    serve(Watching(inline.device_app(job.devices[0].parent), 3), job.settings, job.catalogue, job.run_dir, resume=False)
    kinds = list(dict.fromkeys((now.kind, now.round) for now in found))
    assert kinds[:3] == [("item_statistics", 0), ("power", 0), ("train", 1)]
    assert kinds[3:6] == [("train", 2), ("evaluate", 2), ("baselines", 2)]
    assert {now.asked for now in found if now.asked} == {3}
    assert not (job.run_dir / FILE).exists()


def test_the_bar_shows_the_phase_at_80_columns(tmp_path: Path) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=80)
    display, standings = RunDisplay(SETTINGS, console, tmp_path), Standings(tmp_path)
    standings.ask(task("train", 6, Ask("evaluate", 5)))
    standings.answered(0, 20)
    display.report(StatisticsRecord(users=60, events=600, withheld=0, nodes=20, seconds=1.0))
    display._look()
    shown = Console(file=StringIO(), width=80)
    with shown.capture() as capture:
        shown.print(display.bar)
    assert "evaluation and training, 0 of 20 nodes answered" in " ".join(capture.get().split())


def test_times_are_said_in_two_units() -> None:
    assert [clock(seconds) for seconds in (0.4, 59, 60, 200, 7325)] == [
        *("0 s", "59 s", "1 min 0 s", "3 min 20 s", "2 h 2 min"),
    ]


def test_work_in_parts_says_its_phase_its_steps_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "SILENCE", 0.3)
    monkeypatch.setattr(ticker, "LOOK", 0.1)
    console = Console(file=StringIO(), width=80)
    with Work(console, "reading the dataset") as work:
        time.sleep(0.4)
        advance = work.begin("encoding text", 1600, 600)
        time.sleep(0.4)
        for _ in range(4):
            advance(100)
            time.sleep(0.15)
    said = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert said[0] == "reading the dataset; 0 s passed, time left not known yet"
    assert any(line.startswith("encoding text, 600 of 1,600;") for line in said)
    assert re.search(r"encoding text, (?:7|8|9|1,0)00? of 1,600; \d s passed, about \d s left", "\n".join(said))


def test_a_watched_encoder_makes_the_same_features(tmp_path: Path) -> None:
    texts, begun = [f"item {n} of wool" for n in range(3000)], []
    encoder = make_encoder("builtin")

    def begin(name: str, total: int) -> Callable[..., None]:
        begun.append((name, total))
        return lambda steps: begun.append(steps)

    assert np.array_equal(Counted(encoder, begin).encode_texts(texts), encoder.encode_texts(texts))
    assert begun[0] == ("encoding text", 3000)
    assert sum(begun[1:]) == 3000
    assert Counted(encoder, begin).encode_texts([]).shape == encoder.encode_texts([]).shape
