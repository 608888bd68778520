"""Processes that kill themselves (-9) at a chosen change of a file, so that tests can try all of them.

As a program it tries a run: `python -m tests.faults.killing FOLDER BEFORE ROUNDS` kills it at every change that is made after
BEFORE rounds, each time goes on with it to the end of ROUNDS rounds, and compares the end with that of an undisturbed run.
"""

import gc
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401  (every optimiser reads it: once here rather than in each fork)

from tessera.client.recommend import Personal
from tessera.common.protocol.tensors import content_hash
from tessera.common.utils.atomic_files import digest, read_tensors
from tessera.deploy.executors import inline
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics

SETTINGS: dict[str, Any] = {
    "fraction": 0.7,
    "views": {"dim": 8, "id_dim": 8, "spectral_rounds": 1},
    "server": {"learning_rate": 0.3},
    "evaluation": {"every": 1, "ks": (10,)},
}
"""Steps so long that a round before the last three is the best, and must stay."""


class Mortal:
    """Hears of this process's operations on files, counts those that change one below `folder`, and kills it before number
    `last`, if there is one. Each is heard of before it is done, as an audit event of Python's.

    A file that was to be renamed is cut in half first: so it lies there after a kill amid the writing.
    """

    def __init__(self, folder: Path, last: int | None) -> None:
        self.folder, self.last, self.count = f"{folder}/", last, 0
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._changes(event, arguments):
            return
        if self.count == self.last:
            if event == "os.rename":
                os.truncate(arguments[0], Path(arguments[0]).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def _changes(self, event: str, arguments: tuple[Any, ...]) -> bool:
        if event not in ("open", "os.rename", "os.remove") or not str(arguments[0]).startswith(self.folder):
            return False
        return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))


def forked(work: Callable[[], object]) -> tuple[int, Any]:
    """Do `work` in a fork of this process; return its exit code, and what `work` returned unless it was killed."""
    gc.freeze()  # what is there already is not the fork's to clear up
    read, write = os.pipe()
    if not (child := os.fork()):
        status = 1
        try:
            os.write(write, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, json.loads(told) if told else None


def killed_everywhere(folder: Path, work: Callable[[], object]) -> Iterator[int]:
    """Do `work` again and again, each time in a process that is killed one change below `folder` later; yield the number of
    changes that were made, after each kill. Ends when the work is done before its time has come."""

    def mortal(last: int) -> None:
        Mortal(folder, last)
        work()

    last = 0
    while (code := forked(partial(mortal, last))[0]) == -signal.SIGKILL:
        yield last
        last += 1
    assert code == 0, f"what was to be killed after {last} changes failed"


def train(folder: Path, name: str, rounds: int) -> dict[str, Any]:
    """Begin the run `name` below `folder`, or go on with it where there is one, as a person would; return its outcome."""
    resume = (folder / name / "config.yaml").exists()
    inline.execute(small_job(folder, name, resume=resume, rounds=rounds, **SETTINGS), lambda line: None)
    return outcome(folder / name)


def outcome(run: Path) -> dict[str, Any]:
    """All that a run learnt and reported, on the server and on the devices, but for seconds and bytes."""
    told = [{name: value for name, value in line.items() if not _varies(name)} for line in read_metrics(run)]
    checkpoints = {path.name: content_hash(read_tensors(path)[0]) for path in run.glob("checkpoints/*")}
    devices = (run / "devices").glob("*/private/*/block-*/*")
    states = {f"{path.parts[-5]}/{path.parent.name}/{path.name}": digest(path.read_bytes()) for path in devices}
    return {"metrics": told, "checkpoints": checkpoints, "states": states}


def shown(run: Path) -> dict[str, Any]:
    """By which round each device that has trained recommends, and what it says to one of its people."""
    found: dict[str, Any] = {}
    for folder in sorted(run.glob("devices/node-*")):
        if any(folder.glob("private/*/run.json")):
            personal = Personal.open(folder)
            user = personal.people()[0][0].users[0]
            found[folder.name] = [
                personal.task.round,
                *([one.item, one.score] for one in personal.recommend(user, 5)[0]),
            ]
    return found


def _varies(name: str) -> bool:
    return name == "seconds" or name.startswith("bytes_")


def progress(run: Path) -> tuple[int, int]:
    """The last round that was reported, and that of the newest checkpoint."""
    reported = [line["round"] for line in read_metrics(run) if line["kind"] == "round"]
    saved = [int(path.stem.removeprefix("round-")) for path in run.glob("checkpoints/round-*.safetensors")]
    return max(reported, default=0), max(saved, default=0)


def main(folder: Path, before: int, rounds: int) -> None:
    """Kill a run at every change after `before` rounds; print how many there were. Fails at the first kill that matters."""

    def finish(name: str) -> dict[str, Any]:
        return train(folder, name, rounds) | {"shown": shown(folder / name)}

    _, wanted = forked(lambda: finish("whole"))
    run, begun = folder / "killed", folder / "begun"
    begun.mkdir()
    if before:
        forked(lambda: train(folder, "begun", before))
    shutil.copytree(begun, run)
    for last in killed_everywhere(run, lambda: train(folder, "killed", rounds)):
        reported, saved = progress(run)
        assert reported - saved <= 1, f"killed after {last} changes, {reported} rounds were reported and {saved} saved"
        code, _ = forked(lambda: shown(run))
        assert code == 0, f"killed after {last} changes, a device cannot recommend until the run goes on"
        code, found = forked(lambda: finish("killed"))
        assert code == 0, f"killed after {last} changes, the run does not go on"
        for part, value in wanted.items():
            assert found[part] == value, f"killed after {last} changes, the run ends with other {part}"
        left = [str(path) for path in run.rglob(".*.tmp")]
        assert not left, f"killed after {last} changes, the run leaves {left}"
        shutil.rmtree(run)
        shutil.copytree(begun, run)
    print(last + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
