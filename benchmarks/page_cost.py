"""python -m benchmarks.page_cost [--blocks 12]      (or, anywhere: python -m tessera.benchmarks.page_cost)

Measures what the two pages cost a round over gRPC that somebody looks at, and how long a person waits for theirs.

The demo trains over gRPC on this machine: a server and three devices, evaluated every five rounds. Blocks of five rounds take
turns: in every other one Chromium shows the operator's page, which follows the run, and the page of the first device's people,
whose first person moves a slider every two seconds. The pages' processes run all the time. So what else the machine does hits
both kinds of blocks alike.

Two ratios: of CPU seconds, those of the pages' processes to those of all that trains, which is the same on busy cores; and of
the rounds' seconds, in which Chromium's own work counts, which draws curves anew each second and may be on another machine.

Then, with nothing training, the person's page is opened ten times, from the click to all of it, pictures included, and a slider
is moved ten times, from the request to the list. Linux only; needs Chromium; some minutes. The seed is the demo's, 0.

Ends with one line of JSON: CPU seconds a round of what trains, of the pages and of Chromium; seconds a round with and without
(medians); the median and the longest of the seconds until the page and the list are there.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil
from rich.console import Console

from tessera.benchmarks.screenshots import chromium, command, page
from tessera.common.errors import RunError
from tessera.common.metrics.records import read_rounds

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

Processes = list[psutil.Process]
CONFIG = Path(__file__).parent / "demo.yaml"
BLOCK = 5
"""Rounds of a block, of which one has an evaluation."""
MOVES = 2.0
"""Seconds from one move of a slider to the next."""
TRIES = 10
PATIENCE = 600.0


def main() -> None:
    """Train, look every other block, and print."""
    parser = argparse.ArgumentParser(description="Measures what the pages cost a round that somebody looks at.")
    parser.add_argument("--blocks", type=int, default=12, help="Blocks of five rounds, every other one looked at.")
    blocks, console = parser.parse_args().blocks, Console(highlight=False)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with training(folder) as (trains, run), pages(folder, run) as (shows, browser, look):
            seconds, spent = turns(run, blocks, {"run": trains, "pages": shows, "chromium": browser}, look, console)
        with pages(folder, run) as (_, _, look):
            opened, listed = waits(look)
    plain, seen, cost = median(seconds[False]), median(seconds[True]), spent["pages"] / spent["run"]
    console.print(f"the pages that are looked at take {100 * cost:.2f}% of the CPU seconds of what trains")
    console.print(f"a round takes {plain:.3f} s, {seen:.3f} s while they are: {100 * (seen / plain - 1):+.1f}%")
    console.print(f"the person's page is there in {median(opened):.2f} s, a new list in {1000 * median(listed):.0f} ms")
    found = {"cpu_ratio": cost, **{f"{name}_cpu_s": value for name, value in spent.items()}, "plain_s": plain,
             "seen_s": seen, "seconds_ratio": seen / plain, "rounds": len(seconds[True]), "opened_s": median(opened),
             "opened_longest_s": max(opened), "listed_s": median(listed), "listed_longest_s": max(listed),
             "load": os.getloadavg()[0], "cores": os.cpu_count()}  # fmt: skip
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}))


@contextmanager
def training(folder: Path) -> Iterator[tuple[Processes, Path]]:
    """What trains until the block's end, and its run's folder; it has begun, and its devices are there."""
    words = command("train", CONFIG, "--executor", "grpc", "--nodes", 3, "--runs", folder / "runs",
                    "--set", "rounds=10000", "--set", "evaluation.every=5")  # fmt: skip
    with (folder / "train.log").open("w") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    run, all_of_it = folder / "runs" / "demo", psutil.Process(process.pid)
    try:
        end = time.monotonic() + PATIENCE
        while len(rounds_of(run)) <= BLOCK:
            if process.poll() is not None or time.monotonic() > end:
                raise RunError(f"the run does not go on: {(folder / 'train.log').read_text()[-1000:]}")
            time.sleep(0.2)
        yield [all_of_it, *all_of_it.children(recursive=True)], run
    finally:
        process.terminate()
        process.wait(60)


class Looking:
    """Somebody who has both pages open."""

    def __init__(self, context: "BrowserContext", person: str, operator: str) -> None:
        self._context, self._addresses, self._tabs = context, (person, operator), list["Page"]()
        self._moved = 0.0

    def begin(self) -> "Page":
        """Open both; return the person's."""
        for address in self._addresses:
            tab = self._context.new_page()
            tab.goto(address)
            self._tabs.append(tab)
        return self._tabs[0]

    def move(self) -> None:
        """Move a slider, where that is due."""
        if self._tabs and time.monotonic() > self._moved + MOVES:
            self._moved = time.monotonic()
            slider = self._tabs[0].locator("input[type=range]").first
            slider.press("ArrowRight" if float(slider.input_value()) < 0 else "ArrowLeft")

    def end(self) -> None:
        """Close them."""
        while self._tabs:
            self._tabs.pop().close()


@contextmanager
def pages(folder: Path, run: Path) -> Iterator[tuple[Processes, Processes, Looking]]:
    """The pages' processes, those of a Chromium, and somebody who can look at the pages in it."""
    from playwright.sync_api import sync_playwright

    device, shop = run / "devices" / "node-0", next(folder.glob("prepared/shop-*"))
    before = below()
    with (
        page("device", "page", "--data-dir", device, "--pictures", shop, folder=folder) as person,
        page("runs", "page", "--runs", "runs", folder=folder) as operator,
    ):
        shows = below() - before
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            look = Looking(browser.new_context(), person, operator)
            look.begin()  # Chromium's processes come with the first page
            drawing = below() - before - shows
            look.end()
            yield list(shows), list(drawing), look
            browser.close()


def below() -> set[psutil.Process]:
    """All processes below this one."""
    return set(psutil.Process().children(recursive=True))


def turns(
    run: Path, blocks: int, parts: Mapping[str, Processes], look: Looking, console: Console
) -> tuple[dict[bool, list[float]], dict[str, float]]:
    """Seconds of the rounds that nobody looked at (False) and that somebody did (True), and CPU seconds a round of each of the
    `parts` in the latter. The round in which a block begins does not count."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    spent, rounds = dict.fromkeys(parts, 0.0), 0
    for block in range(blocks):
        seen = bool(block % 2)
        if seen:
            look.begin()
        began, before = len(rounds_of(run)), {name: cpu(part) for name, part in parts.items()}
        while (now := len(rounds_of(run))) < began + BLOCK + 1:
            if seen:
                look.move()
            time.sleep(0.2)
        if seen:
            spent = {name: spent[name] + cpu(part) - before[name] for name, part in parts.items()}
            rounds += now - began
        look.end()
        seconds[seen] += rounds_of(run)[began + 1 : began + 1 + BLOCK]
        told = ", ".join(f"{one:.2f}" for one in seconds[seen][-BLOCK:])
        console.print(f"block {block + 1} of {blocks}, {'looked at' if seen else 'plain'}: {told} s")
    return seconds, {name: value / rounds for name, value in spent.items()}


def waits(look: Looking) -> tuple[list[float], list[float]]:
    """Seconds until the person's page is there, and until a list is that a slider changed."""
    opened, listed = [], []
    for _ in range(TRIES):
        since = time.monotonic()
        tab = look.begin()  # goto waits for the pictures in sight
        opened.append(time.monotonic() - since)
        look.end()
    tab = look.begin()
    for _ in range(TRIES):
        with tab.expect_response(lambda answer: answer.url.endswith("/lean")) as answer:
            tab.locator("input[type=range]").first.press("ArrowLeft")
        answer.value.finished()
        listed.append(answer.value.request.timing["responseEnd"] / 1000)
    return opened, listed


def rounds_of(run: Path) -> list[float]:
    """Seconds of a run's rounds so far."""
    return [line.seconds for line in read_rounds(run)]


def cpu(processes: Processes) -> float:
    """CPU seconds of processes; of those that have ended since, none."""
    found = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            found += sum(process.cpu_times()[:2])
    return found


if __name__ == "__main__":
    main()
