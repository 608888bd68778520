"""The processes of a device: what keeps it connected, its workers, and what forks those."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.deploy.test_grpc import left_behind


def node_of(device: Path) -> psutil.Process:
    """What keeps a device connected; all else that it runs descends from it."""
    family = {pid: psutil.Process(pid) for pid in left_behind(device)}
    (found,) = (process for process in family.values() if process.ppid() not in family)
    return found


def workers(device: Path) -> list[psutil.Process]:
    """What forks a device's workers, and then the workers."""
    return node_of(device).children(recursive=True)


@contextmanager
def held(device: Path) -> Iterator[None]:
    """Within it, a device keeps its connection and takes a message, but gets no further with it."""
    stopped = [workers(device)[0]]  # what forks them, so that they are all there are
    stopped[0].suspend()
    for worker in stopped[0].children():
        worker.suspend()
        stopped.append(worker)
    try:
        yield
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):  # it was killed
                process.resume()
