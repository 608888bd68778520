"""Starts Flower's processes, watches them, and stops them with everything they started."""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn
from uuid import uuid4

import psutil

from tessera.common.errors import RunError
from tessera.common.utils import parent_death
from tessera.deploy.environment import QUIET

MARK = "TESSERA_PROCESS"
GRACE = 15.0
"""Seconds a process has to stop on SIGTERM: a SuperNode signs off within 3, and Flower forces its own exit after 5."""
LINGER = 0.5
"""Seconds that what a stopped process had started has to notice it (it looks every 0.2 s) before it is killed."""
PORTS = range(20000, 32000)
"""Where free ports are sought: below those the kernel lends to outgoing connections."""
LOOPBACK = "127.0.0.1"
TAIL = 15
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


FORKS = sys.platform == "linux"
"""Whether a process may be forked from one that has imported much: on macOS that is not safe."""


@dataclass
class Process:
    """A running Flower command. Its output goes to `log`, or is left for `relay` to read.

    All that it starts inherits the environment variable MARK with the value `mark`, and is known by it.
    """

    name: str
    popen: subprocess.Popen[str]
    mark: str
    log: Path | None

    def require(self) -> None:
        """Raise `RunError` with the end of the log unless the process runs."""
        if (code := self.popen.poll()) is not None:
            raise RunError(f"{self.name} ended with exit code {code}:\n{self.tail()}")

    def tail(self, lines: int = TAIL) -> str:
        """The last lines of the log."""
        return tail(self.log.read_text(encoding="utf-8", errors="replace"), lines) if self.log else ""


def start(name: str, command: Sequence[str], home: Path, log: Path | None = None, **settings: str) -> Process:
    """Start one of Flower's commands. `settings` are further environment variables. Raises `RunError`.

    It ends when the thread that started it does, on Linux: nothing is left of this process when that is killed.
    """
    home.mkdir(parents=True, exist_ok=True)
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid4().hex
    with (log or Path(os.devnull)).open("ab") as output:
        popen = subprocess.Popen(
            [sys.executable, "-IS", parent_death.__file__, str(os.getpid()), program(command[0]), *command[1:]],
            env=environment(home) | settings | {MARK: mark},
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=output if log else subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    return Process(name, popen, mark, log)


def stop(processes: Sequence[Process], grace: float = GRACE) -> None:
    """Stop processes, and all that they started: SIGTERM first, SIGKILL for what is left after `grace` seconds."""
    for process in processes:
        if process.popen.poll() is None:
            process.popen.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.popen.wait(max(0.0, deadline - time.monotonic()))
    deadline = time.monotonic() + LINGER
    while any(map(remains, processes)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for process in processes:
        _kill(process)


def end_leftovers(home: Path) -> None:
    """SIGKILL what an earlier process of ours left running with its Flower home at `home` or below.

    For whoever holds the folder (`tessera.common.utils.folder_lock`): nobody else's processes have their home there. Known by
    their environment, they are not mistaken for others that were given the same id since.
    """

    def ours(variables: Mapping[str, str]) -> bool:
        return MARK in variables and Path(variables.get("FLWR_HOME", "")).is_relative_to(home.absolute())

    _kill_all(lambda: _running(ours))


def _kill(process: Process) -> None:
    """SIGKILL what is left of a process, and wait until it is gone."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.popen.pid, signal.SIGKILL)
    process.popen.wait()
    _kill_all(lambda: remains(process))


def _kill_all(find: Callable[[], list[psutil.Process]]) -> None:
    """SIGKILL the processes that `find` finds until it finds none: they may be starting others."""
    deadline = time.monotonic() + GRACE
    while (left := find()) and time.monotonic() < deadline:
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)


def remains(process: Process) -> list[psutil.Process]:
    """What still runs of a process: itself and all that it started, even in other sessions.

    SuperLink starts SuperExec in a session of its own, so a process group does not hold them all. Where a system does not
    show environments the list is empty, and what is left ends itself when it sees that its parent is gone.
    """
    return _running(lambda variables: variables.get(MARK) == process.mark)


def _running(wanted: Callable[[Mapping[str, str]], bool]) -> list[psutil.Process]:
    """The processes whose environment is `wanted`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # ended meanwhile, or another user's
            if wanted(process.environ()):
                found.append(process)
    return found


def relay(process: Process, show: Callable[[str], None]) -> str:
    """Show a process's output line by line until it ends or this is interrupted; return its last lines.

    The process is stopped in any case. It is waited for here, and read in a thread: what it started holds the other
    end of its output, and ends only when its parent has been waited for.
    """
    last: deque[str] = deque(maxlen=TAIL)

    def read() -> None:
        for line in process.popen.stdout or ():
            last.append(line)
            show(line.rstrip("\n"))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        process.popen.wait()
    finally:
        stop([process])
        reader.join(LINGER)
    return tail("".join(last))


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs one of our modules, whatever lies in the folder where it is started."""
    return [sys.executable, "-P", "-m", f"tessera.deploy.federation.{name}", *arguments]


def program(name: str) -> str:
    """Where one of Flower's commands is installed: beside this Python, or on the PATH. Raises `RunError`."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise RunError(f"{name} is not installed beside {sys.executable}; install tessera with its dependencies there")
    return path


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's processes: no telemetry, no installs, a home of their own, no proxy on loopback."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    own = {"FLWR_HOME": str(home), "PATH": path, "PYTHONUNBUFFERED": "1"}
    return os.environ | QUIET | unproxied() | own


def unproxied() -> dict[str, str]:
    """The variables by which a process reaches this machine's own addresses through no proxy."""
    hosts = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    direct = ",".join(filter(None, dict.fromkeys([*hosts, LOOPBACK, "localhost"])))
    return {"no_proxy": direct, "NO_PROXY": direct}


def free_port() -> int:
    """A loopback port that nobody listens on. Drawn at random, so that federations started together rarely collide."""
    for port in random.SystemRandom().sample(PORTS, k=100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise RunError(f"no free port among {PORTS.start} to {PORTS.stop}; stop what holds them")


def tail(text: str, lines: int = TAIL) -> str:
    """The last lines of a log that are not blank, without colours."""
    return "\n".join([line for line in COLOURS.sub("", text).splitlines() if line.strip()][-lines:])


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, Ctrl-C and SIGTERM unwind the stack; a second one cannot interrupt the stopping that follows."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    for later in (signal.SIGINT, signal.SIGTERM):
        signal.signal(later, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
