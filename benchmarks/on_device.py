"""python -m benchmarks.on_device RUN

Measures what an app on a device gets, on the device folders of a completed run (`tessera train`, inline):

- seconds of `tessera recommend`, a process of its own, against those of `Device.recommend` once it has been called (p50);
- what encryption at rest costs: CPU seconds of opening a device and recommending, and of a round of training with the peak of
  memory, as ratios to the same in clear;
- what a refresh is worth: NDCG@50 of each person's last event by the model of the run, when the event before it is not known,
  when it has just been added, and after so many local steps on it.

Nothing in RUN is changed. Ends with one line of JSON.
"""

import argparse
import json
import os
import resource
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from tessera.client import cohort
from tessera.client.evaluation import evaluate
from tessera.client.histories import Histories, histories
from tessera.client.people.device import Device
from tessera.client.people.refresh import refreshed
from tessera.client.private_state import PrivateState, Store
from tessera.client.recommend import Personal
from tessera.client.recommendation import RecommendationClient, blocks
from tessera.client.run_note import RunNote
from tessera.common.data.interactions import Split
from tessera.common.metrics.names import ALL, NDCG, TEST, MetricName
from tessera.common.metrics.ranking import MetricSums, percentages
from tessera.common.protocol.messages import VIEWS, Task
from tessera.common.utils.encryption.seam import KEY_FILE
from tessera.deploy.environment import quieten

CALLS, REPEATS, ROUNDS = 200, 5, 5
WARM = """
import statistics, sys, tessera, time
device, seconds = tessera.Device.open(sys.argv[1]), []
device.recommend(sys.argv[2])
for _ in range(int(sys.argv[3])):
    started = time.perf_counter()
    device.recommend(sys.argv[2])
    seconds.append(time.perf_counter() - started)
print(statistics.median(seconds))
"""
STEPS = (1, 3, 10, 30, 100)
K = 50


def main() -> None:
    """Measure all three, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quieten()
    if arguments.train:
        _train_on(arguments.run)
        return
    folders = sorted((arguments.run / "devices").glob("node-*"))
    found = {"run": arguments.run.name, "recommend": speed(folders[0]), "encryption": encryption(arguments.run)}
    found["ndcg"] = gain(folders)
    print(json.dumps(found))


def speed(folder: Path) -> dict[str, float]:
    """Seconds of a command that recommends, and of a call in a process that did before, each as a person or an app has it."""
    user = Device.open(folder).people()[0].user
    command = [sys.executable, "-m", "tessera", "recommend", "--data-dir", str(folder), "--user", user]
    cold = _median(lambda: subprocess.run(command, check=True, capture_output=True), REPEATS)
    program = [sys.executable, "-c", WARM, str(folder), user, str(CALLS)]
    warm = float(subprocess.run(program, check=True, capture_output=True, text=True).stdout)
    return {"cold_s": round(cold, 3), "warm_ms": round(1e3 * warm, 2), "times_faster": round(cold / warm)}


def encryption(run: Path) -> dict[str, float]:
    """Ratios of an encrypted device's seconds and memory to those of one in clear."""
    with tempfile.TemporaryDirectory() as place:
        key = Path(place) / "key"
        key.write_bytes(secrets.token_bytes(32))
        os.environ[KEY_FILE] = str(key)
        copies = [Path(place) / name / run.name for name in ("clear", "encrypted")]
        for copy in copies:
            shutil.copytree(run, copy)
        for folder in (copies[1] / "devices").glob("node-*"):
            Device.open(folder).encrypt(key_file=key)
        times: list[tuple[float, float]] = [(_opened(copies[0]), _opened(copies[1])) for _ in range(4 * REPEATS)]
        opening = [statistics.median(each) for each in zip(*times, strict=True)]
        command = [sys.executable, "-m", "tessera.benchmarks.on_device", "--train"]
        rounds = [
            json.loads(subprocess.run([*command, str(copy)], check=True, capture_output=True, text=True).stdout)
            for copy in copies
        ]
    return {
        "open_and_recommend": round(opening[1] / opening[0], 2),
        "round_seconds": round(rounds[1]["seconds"] / rounds[0]["seconds"], 2),
        "round_memory": round(rounds[1]["memory"] / rounds[0]["memory"], 2),
    }


def _opened(run: Path) -> float:
    """CPU seconds until a device that is opened has recommended."""
    started = time.process_time()
    device = Device.open(run / "devices" / "node-0")
    device.recommend(device.people()[0].user)
    return time.process_time() - started


def _train_on(run: Path) -> None:
    """Train the devices of a run for some rounds more, with the views they hold, and print the CPU seconds of one, and the
    peak of this process's memory."""
    folders, seconds = sorted((run / "devices").glob("node-*")), []
    for _ in range(ROUNDS + 1):  # the first one warms up
        started = time.process_time()
        for folder in folders:
            (note,) = (RunNote.read(path) for path in folder.glob("private/*/run.json"))
            device, now = RecommendationClient(folder, simulated=True), note.last
            items = device.catalogue().sha256
            task = Task("train", note.run, now.round + 1, (), note.views, items, note.settings, now.tensors)
            device.perform(task, None, {})
        seconds.append(time.process_time() - started)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "memory": memory}))


def gain(folders: list[Path]) -> dict[str, float]:
    """NDCG@50 in % of each person's last event, by how much of the event before it the device has taken in."""
    sums = {"unknown": MetricSums(), "added": MetricSums()} | {f"{steps} steps": MetricSums() for steps in STEPS}
    for folder in folders:
        personal = Personal.open(folder)
        settings, store = personal.task.settings, Store(personal.device.private(personal.task.run))
        for number, block in enumerate(blocks(personal.device.split(settings), settings.local.batch_users)):
            state = personal.device.state(personal.task, block.users, number, personal.sent[VIEWS])
            assert store.find(block.users, personal.task.round + 1, number) is not None, "nobody has trained here"
            sums["unknown"] += _ranked(personal, state, block, added=False)
            sums["added"] += _ranked(personal, state, block)
            for steps in STEPS:
                known = histories(block, block.validation)
                moved = refreshed(
                    state, personal.sent, known, settings.local, settings.seed, personal.task.round + 1, steps
                )
                sums[f"{steps} steps"] += _ranked(personal, moved, block)
    name = MetricName(TEST, ALL, NDCG, K)
    return {what: round(percentages(found)[name], 3) for what, found in sums.items()}


def _ranked(personal: Personal, state: PrivateState, block: Split, added: bool = True) -> MetricSums:
    settings = personal.task.settings
    asked = settings.evaluation.model_copy(
        update={"ks": (K,), "history_at_test": "train+validation" if added else "train"}
    )

    def scorer(people: Histories) -> Tensor:
        return cohort.scores(state.parameters, personal.sent, people, settings.local)[0]

    return evaluate(scorer, block, asked, None, torch.device("cpu"))


def _median(work: Callable[[], object], times: int) -> float:
    """Seconds of `work`, the median of so many times."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
