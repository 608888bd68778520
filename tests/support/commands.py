"""`tessera` commands that tests start as processes of their own, and wait for."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

TESSERA = str(Path(sys.executable).parent / "tessera")
SECONDS = 150.0
"""How long anything may take to start or to end where many others run; it is a few seconds where none do."""


class Command:
    """A `tessera` command that runs, started by the command `by` where there is one; its output goes to the file `log`."""

    def __init__(self, log: Path, *arguments: object, by: Sequence[str] = ()) -> None:
        self.log = log
        with log.open("wb") as output:
            command = [*by, TESSERA, *map(str, arguments)]
            self.popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)

    def told(self) -> str:
        """Its output so far."""
        return self.log.read_text(errors="replace")

    def says(self, what: str) -> None:
        """Wait until it has said something."""
        assert wait(lambda: what in self.told() or self.popen.poll() is not None), self.told()
        assert what in self.told(), self.told()

    def ends(self) -> int:
        """Wait until it ends, and return its exit code."""
        return self.popen.wait(SECONDS)

    def kill(self) -> None:
        """End it with -9."""
        self.popen.kill()
        self.popen.wait()


Start = Callable[..., Command]


@contextmanager
def commands() -> Iterator[Start]:
    """Within it, what starts commands; those that still run at its end are killed with -9."""
    started: list[Command] = []

    def start(log: Path, *arguments: object, by: Sequence[str] = ()) -> Command:
        started.append(Command(log, *arguments, by=by))
        return started[-1]

    try:
        yield start
    finally:
        for command in started:
            command.kill()


def wait(what: Callable[[], bool], seconds: float = SECONDS) -> bool:
    """Wait until something is so; return whether it is."""
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    return what()
