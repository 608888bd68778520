"""python -m benchmarks.page_cost [--blocks 12] [--executor grpc]      (or, anywhere: python -m tessera.benchmarks.page_cost)

Measures what the two pages cost a round that somebody looks at, and how long a person waits for theirs.

The demo trains on this machine, with three devices, evaluated every five rounds. Blocks of five rounds take
turns: in every other one Chromium shows the operator's page, which follows the run, and the page of the first device's people,
whose first person moves a slider every two seconds. The pages' processes run all the time. So what else the machine does hits
both kinds of blocks alike.

Then, with nothing training, the person's page is opened ten times, from the click to all of it, pictures in sight included, and
a slider is moved ten times, from the request to the list; CPU seconds of the page's process are counted with the pictures that
the list loads. So are those of the operator's page for each time that its part is asked for, which an open page does as often
as something has changed, once a second at most.

What the pages cost a round is the share of the machine's cores that they take so: it is the same however long a round is, and
on busy cores, on which the seconds of a round say little. Linux only; needs Chromium; some minutes. The seed is the demo's, 0.

Ends with one line of JSON: that share, the CPU seconds of a list and of a look at the runs; medians of the seconds of rounds
with and without; the median and the longest of the seconds until the page and a list are there.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import psutil
from rich.console import Console

from tessera.benchmarks.screenshots import chromium, command, page
from tessera.common.errors import RunError
from tessera.common.metrics.records import read_rounds
from tessera.deploy.pages.operator.app import TICK

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

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
    parser.add_argument("--executor", default="inline", help="What the run is carried out by: inline, ray or grpc.")
    arguments, console = parser.parse_args(), Console(highlight=False)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with training(folder, arguments.executor) as run, pages(folder, run) as (_, look):
            seconds = turns(run, arguments.blocks, look, console)
        with pages(folder, run) as (processes, look):
            opened, listed, spent = waits(look, *processes)
    share = (spent["list"] / MOVES + spent["look"] / TICK) / (os.cpu_count() or 1)
    plain, seen = median(seconds[False]), median(seconds[True])
    console.print(f"the open pages take {100 * share:.2f}% of the machine's {os.cpu_count()} cores")
    console.print(f"a round takes {plain:.2f} s, {seen:.2f} s while they are open, Chromium's own work included")
    console.print(f"the person's page is there in {median(opened):.2f} s, a new list in {1000 * median(listed):.0f} ms")
    found = {"share": share, "list_cpu_s": spent["list"], "look_cpu_s": spent["look"], "plain_s": plain, "seen_s": seen,
             "rounds": len(seconds[True]), "opened_s": median(opened), "opened_longest_s": max(opened),
             "listed_s": median(listed), "listed_longest_s": max(listed), "load": os.getloadavg()[0],
             "cores": os.cpu_count()}  # fmt: skip
    print(json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}))


@contextmanager
def training(folder: Path, executor: str) -> Iterator[Path]:
    """The folder of a run that trains until the block's end; it has begun, and its devices are there."""
    words = command("train", CONFIG, "--executor", executor, "--nodes", 3, "--runs", folder / "runs",
                    "--set", "rounds=10000", "--set", "evaluation.every=5")  # fmt: skip
    with (folder / "train.log").open("w") as log:
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    run = folder / "runs" / "demo"
    try:
        end = time.monotonic() + PATIENCE
        while len(rounds_of(run)) <= BLOCK:
            if process.poll() is not None or time.monotonic() > end:
                raise RunError(f"the run does not go on: {(folder / 'train.log').read_text()[-1000:]}")
            time.sleep(0.2)
        yield run
    finally:
        process.terminate()
        process.wait(60)


class Looking:
    """Somebody who has both pages open."""

    def __init__(self, context: "BrowserContext", person: str, operator: str) -> None:
        self._context, self._addresses, self._tabs = context, (person, operator), list["Page"]()
        self._moved = 0.0

    def begin(self) -> list["Page"]:
        """Open both."""
        self.begin_person()
        self._open(self._addresses[1])
        return self._tabs

    def begin_person(self) -> "Page":
        """Open the person's alone."""
        return self._open(self._addresses[0])

    def _open(self, address: str) -> "Page":
        tab = self._context.new_page()
        tab.goto(address)
        self._tabs.append(tab)
        return tab

    def ask_operator(self) -> None:
        """Ask for the operator's page's part, as its script does when something has changed."""
        self._tabs[1].evaluate("fetch('/', {headers: {'X-Fragment': 'now'}}).then(answer => answer.text())")

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
def pages(folder: Path, run: Path) -> Iterator[tuple[tuple[psutil.Process, psutil.Process], Looking]]:
    """The processes of the person's and the operator's page, and somebody who can look at them in a Chromium."""
    from playwright.sync_api import sync_playwright

    device, shop = run / "devices" / "node-0", next(folder.glob("prepared/shop-*"))
    with (
        page("device", "page", "--data-dir", device, "--pictures", shop, folder=folder) as person,
        page("runs", "page", "--runs", "runs", folder=folder) as operator,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        serving = {
            kind: one
            for one in psutil.Process().children()
            for kind in ("device", "runs")
            if [kind, "page"] == one.cmdline()[2:4]
        }
        yield (serving["device"], serving["runs"]), Looking(browser.new_context(), person, operator)
        browser.close()


def turns(run: Path, blocks: int, look: Looking, console: Console) -> dict[bool, list[float]]:
    """Seconds of the rounds that nobody looked at (False) and that somebody did (True). The round in which a block begins does
    not count."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for block in range(blocks):
        seen = bool(block % 2)
        if seen:
            look.begin()
        began = len(rounds_of(run))
        while len(rounds_of(run)) < began + BLOCK + 1:
            if seen:
                look.move()
            time.sleep(0.2)
        look.end()
        seconds[seen] += rounds_of(run)[began + 1 : began + 1 + BLOCK]
        told = ", ".join(f"{one:.2f}" for one in seconds[seen][-BLOCK:])
        console.print(f"block {block + 1} of {blocks}, {'looked at' if seen else 'plain'}: {told} s")
    return seconds


def waits(
    look: Looking, person: psutil.Process, operator: psutil.Process
) -> tuple[list[float], list[float], dict[str, float]]:
    """Seconds until the person's page is there, and until a list is that a slider changed; CPU seconds of a list and of a look
    at the runs."""
    opened, listed = [], []
    for _ in range(TRIES):
        since = time.monotonic()
        look.begin_person()
        opened.append(time.monotonic() - since)
        look.end()
    tab, before = look.begin_person(), cpu(person)
    for _ in range(TRIES):
        with tab.expect_response(lambda answer: answer.url.endswith("/lean")) as answer:
            tab.locator("input[type=range]").first.press("ArrowLeft")
        answer.value.finished()
        listed.append(answer.value.request.timing["responseEnd"] / 1000)
        tab.wait_for_load_state("networkidle")  # the pictures
    spent = {"list": (cpu(person) - before) / TRIES}
    look.end()
    look.begin()[1].wait_for_timeout(3000)
    before = cpu(operator)
    for _ in range(10 * TRIES):
        look.ask_operator()
    return opened, listed, spent | {"look": (cpu(operator) - before) / (10 * TRIES)}


def rounds_of(run: Path) -> list[float]:
    """Seconds of a run's rounds so far."""
    return [line.seconds for line in read_rounds(run)]


def cpu(process: psutil.Process) -> float:
    """CPU seconds of a process."""
    return sum(process.cpu_times()[:2])


if __name__ == "__main__":
    main()
