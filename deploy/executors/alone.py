"""Measures what one person alone on a device receives and sends in a round of a run that has ended.

A node that hosts many people sends one sum for all of them, so its bytes divided by its people say nothing of a person who has
a device of their own. Devices are asked that each have one of the run's people: with the run's own task and the views they
ended with, as `tessera.client.app` answers a message. Under masks, and where a device stands for one client as it is, an answer
is as long whoever is behind it: then it is the last round's.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray

from tessera.client.app import answer
from tessera.client.device_folder import NOTE, DeviceFolder
from tessera.client.private_state import Store
from tessera.client.recommendation import RecommendationClient
from tessera.client.run_note import RunNote
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.common.metrics.records import StatisticsRecord, read_records, read_rounds
from tessera.common.protocol.messages import VIEWS, Task, pack_task, refused
from tessera.common.protocol.tensors import Tensors, array_bytes
from tessera.common.utils.atomic_files import read_tensors, write_tensors
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import hand_out
from tessera.server.run_folder import RunFolder
from tessera.server.strategies.fedvlr import DIRECTIONS

PEOPLE = 16
"""How many people are asked, at most: evenly from those with few events to those with many."""


class Bytes(NamedTuple):
    """Bytes of tensors in a round of training."""

    down: float
    up: float


def alone(job: Job) -> Bytes | None:
    """What one person alone on a device receives and sends in a round, on average over some of the run's people; None where
    the devices or their tensors are not on this machine, and of devices with towers, which nobody else's folder has."""
    rounds = read_rounds(job.run_dir)
    statistics = [line for line in read_records(job.run_dir) if isinstance(line, StatisticsRecord)]
    if rounds and (job.settings.asks_questions or any(line.groups for line in statistics)):
        return Bytes(rounds[-1].bytes_down_per_node, rounds[-1].bytes_up_per_node)
    if job.settings.strategy_spec.has_towers or not rounds or (found := _task(job)) is None:
        return None
    task, tensors = found
    question = pack_task(task)  # the tensors are there
    sizes = [_answered(question, device) for device in _devices(job, task, tensors)]
    up = [size for size in sizes if size is not None]
    return Bytes(array_bytes(pack_task(task, tensors)), fmean(up)) if up else None


def _answered(question: RecordDict, device: RecommendationClient) -> int | None:
    """Bytes of a device's answer; None where it refuses."""
    reply = answer(question, lambda _: device, simulated=True)
    return None if refused(reply) is not None else array_bytes(reply)


def _task(job: Job) -> tuple[Task, Tensors] | None:
    """The run's next task of training, and the tensors it ended with, as a device of this machine holds them."""
    run = RunFolder.look(job.run_dir)
    for folder in map(DeviceFolder, job.devices):
        path = folder.private(run.run) / NOTE
        if not path.exists():
            continue
        note = RunNote.read(path)
        held = folder.tensors(note.last.tensors)
        if held.exists():
            settings = note.settings.model_copy(update={"fraction": 1.0})  # a round in which this person takes part
            catalogue = load_catalogue(job.catalogue, modalities=False).sha256
            task = Task("train", run.run, note.last.round + 1, (), note.views, catalogue, settings, note.last.tensors)
            return replace(task, components=_components(run), continues=note.continues), read_tensors(held)[0]
    return None


def _components(run: RunFolder) -> tuple[tuple[float, ...], ...]:
    """The directions along which gradients came back in the end, where they did."""
    newest = run.newest()
    found = newest[2].get(DIRECTIONS, torch.zeros(0)) if newest else torch.zeros(0)
    return tuple(map(tuple, found.tolist()))


def _devices(job: Job, task: Task, tensors: Tensors) -> Iterator[RecommendationClient]:
    """Devices of one person each, with the task's tensors and what is private of this person, one after the other."""
    catalogue = load_catalogue(job.catalogue, modalities=False)
    interactions = load_interactions(job.catalogue, len(catalogue))
    rows = {user: row for row, user in enumerate(interactions.users)}
    nodes = [RecommendationClient(folder, simulated=True) for folder in job.devices]
    people = [node.split(task.settings).training_users() for node in nodes]
    owners = np.repeat(np.arange(len(nodes)), [len(split.users) for split in people])
    users = [user for split in people for user in split.users]
    drawn = _spread(np.concatenate([np.diff(split.offsets) for split in people]))
    for number, node in enumerate(nodes):
        own = tuple(users[person] for person in drawn[owners[drawn] == number])
        states = node.kept(task, own, 0, node.sent(task, tensors)[VIEWS]) if own else None
        for user in own:
            with TemporaryDirectory() as folder:
                hand_out(catalogue, interactions.take(np.array([rows[user]])), Path(folder))
                device = RecommendationClient(Path(folder), simulated=True)
                write_tensors(device.tensors(task.tensors), tensors)
                if states and user in states.users:
                    Store(device.private(task.run)).save(0, task.round - 1, states.of((user,)))
                yield device


def _spread(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of people with histories of these lengths [n_users] as many as are asked, evenly from short ones to long ones."""
    there = np.flatnonzero(lengths)
    there = there[np.argsort(lengths[there], kind="stable")]
    n = min(PEOPLE, len(there))
    drawn: NDArray[np.int64] = there[((np.arange(n) + 0.5) * len(there) / max(n, 1)).astype(int)]
    return drawn
