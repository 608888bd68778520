"""Ends a process when its parent ends, however that happens. Linux only; elsewhere it does nothing.

As a script, `parent_death.py PARENT COMMAND...`, it becomes a command that is: only the child can ask for it, and between fork
and exec a threaded Python may not run code.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""See prctl(2). What is set outlives exec, and is not inherited by children."""


def tether() -> None:
    """Have the kernel send this process SIGTERM when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def main(parent: int, command: list[str]) -> None:
    """Become `command`, unless the parent died before it could be watched."""
    tether()
    if os.getppid() != parent:
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
