"""Runs Flower's SuperLink, and starts the ServerApp of each run by a fork of this process, in which most is imported already.

Flower's SuperExec starts a process for each run, 4 s of processor of which nearly all goes into imports. Here they are done
once, while the SuperLink starts: it runs with `--isolation process`, which leaves the ServerApps to others. This process starts
no thread in all its life; only a fork starts threads or uses a GPU.

    serverapps.py ADDRESS CA COMMAND...      COMMAND is flower-superlink with its options, ADDRESS its control port
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tessera.common.utils import parent_death

NAME = b"flwr-serverapp"
"""What `ps` and `top` call a fork; at most 15 bytes."""
PR_SET_NAME = 15
QUICK, SLOW, FRESH = 0.1, 1.0, 60.0
"""Seconds between two looks for a task, before the first one of a young server and otherwise; and for how long it is young.
Each look costs the SuperLink 5 ms."""
HANDLED = {signal.SIGCHLD: "_reap", signal.SIGINT: "_leave", signal.SIGTERM: "_leave"}
"""Signals, and who in `ServerApps` handles them."""


class ServerApps:
    """The SuperLink that runs below this process, and the ServerApps of its runs."""

    def __init__(self, address: str, ca: bytes, command: Sequence[str]) -> None:
        self.address, self.ca = address, ca
        self._forks: set[int] = set()
        self._told_to_end = False
        self._superlink = subprocess.Popen([sys.executable, "-IS", parent_death.__file__, str(os.getpid()), *command])
        for number, handler in HANDLED.items():
            signal.signal(number, getattr(self, handler))

    def serve(self) -> str:
        """Start ServerApps until the SuperLink ends, or this process is told to: then have it end, and exit with its code.

        Returns in each fork, with the token of the task that is to be run there.
        """
        from tessera.common.flower_internals.runtime import TaskQueue, import_server_app_runner

        queue = None
        try:
            import_server_app_runner()
            import_what_starts_no_thread()
            queue, began = TaskQueue(self.address, self.ca), time.monotonic()
            while self._superlink.poll() is None and not self._told_to_end:
                if token := queue.acquire():
                    began = 0.0
                    if self._fork():
                        return token
                time.sleep(QUICK if began and time.monotonic() < began + FRESH else SLOW)
        except SystemExit:  # by a signal's handler
            pass
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if queue:
            queue.close()  # the SuperLink waits up to 30 s for whoever keeps a connection open
        self._superlink.terminate()
        code = self._superlink.wait()
        os._exit(code if code >= 0 else 128 - code)  # at once: to take down what was imported takes a second

    def _fork(self) -> bool:
        """Fork this process; true in the fork, which has none of our signal handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        if fork := os.fork():
            self._forks.add(fork)
        else:
            for number in HANDLED:
                signal.signal(number, signal.SIG_DFL)
            ctypes.CDLL(None).prctl(PR_SET_NAME, NAME, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        return not fork

    def _reap(self, number: int, frame: FrameType | None) -> None:
        """Take note of forks that have ended; go no further when the SuperLink has."""
        self._forks = {fork for fork in self._forks if not os.waitpid(fork, os.WNOHANG)[0]}
        if self._superlink.poll() is not None:
            raise SystemExit

    def _leave(self, number: int, frame: FrameType | None) -> None:
        for later in (signal.SIGINT, signal.SIGTERM):
            signal.signal(later, signal.SIG_IGN)
        self._told_to_end = True
        raise SystemExit


def import_what_starts_no_thread() -> None:
    """Import what our own ServerApp needs, but not polars, which starts threads: they would be missing in a fork."""
    import torch  # noqa: F401
    import yaml  # noqa: F401

    import tessera.common.config.loading  # noqa: F401


def main(address: str, ca: Path, command: Sequence[str]) -> None:
    """Run a SuperLink by `command`, and the ServerApps of its runs."""
    here = os.getpid()
    apps = ServerApps(address, ca.read_bytes(), command)
    token = apps.serve()
    from tessera.common.flower_internals.runtime import run_server_app

    try:
        run_server_app(address, apps.ca, token, here)
    except SystemExit as end:  # its exit handlers have run
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
