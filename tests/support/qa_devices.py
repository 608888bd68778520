"""Makes small federations of devices that answer questions: readers never fitted, questions that can be learnt."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from torch import Tensor
from torch.nn.functional import normalize

from tessera.common.config.loading import overlaid, parse_settings
from tessera.common.config.settings import TOWER_DIM, Settings
from tessera.common.data.catalogue import Catalogue, Features, load_catalogue
from tessera.common.data.questions import PICTURE, TEXT, WORD, Codebook, Questions
from tessera.common.protocol.adapters import ADAPTERS, AdapterUpdate
from tessera.common.protocol.messages import Task, join_answers, split_answers, unpack_task
from tessera.common.protocol.tensors import Tensors
from tessera.common.protocol.updates import Update, pack_update, unpack_update
from tessera.common.towers.io import load_reader, save_reader, tower_path
from tessera.common.towers.qa_reader import QAReader
from tessera.common.towers.transformer import TowerSize
from tessera.common.utils.atomic_files import write_tensors
from tessera.deploy.executors.inline import CLIENT_APP_FAILED, InlineGrid
from tessera.deploy.executors.run import make_job
from tessera.deploy.job import Job
from tessera.server.pretraining.aligned_init import public_rows
from tessera.server.pretraining.fit_readers import fit_keys
from tessera.server.pretraining.reader_training import STEPS

N_ITEMS, N_PUBLIC = 80, 70
DIMS = {"image": 72, "text": 66}
"""As wide as the shared space at least, or towers could not be aligned."""
READERS = {"tiny": TowerSize(32, 4), "small": TowerSize(64, 4), "base": TowerSize(64, 8)}
FAMILIES = ("relation", "reasoning", "attribute")
TASKS, RANK, BLOCKS = 4, 4, 2


def reader(name: str, seed: int = 0) -> QAReader:
    """A reader of a device class, as drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return QAReader(READERS[name], *DIMS.values())


def questions(client: int, items: range, image: Tensor) -> Questions:
    """Four tasks of one client about `items`: on which side of a line of its family's does the picture lie?"""
    rows = torch.tensor(items).repeat(TASKS)
    tasks = torch.arange(TASKS).repeat_interleave(len(items))
    sides = image[rows, (client % 3) * TASKS + tasks] > 0
    names = tuple(f"{FAMILIES[client % 3]}/hush-{client}/{task}" for task in range(TASKS))
    return Questions(
        tasks=tasks,
        pieces=torch.stack([torch.tensor([PICTURE, TEXT]).expand(len(rows), 2), rows[:, None].expand(-1, 2)], -1),
        choices=torch.tensor([(WORD, 0), (WORD, 1)]).expand(len(rows), 2, 2).contiguous(),
        answers=sides.long(),
        names=names,
        instructions=tuple(f"whisper {client} side {task}" for task in range(TASKS)),
    )


def qa_dataset(folder: Path, n_clients: int = 6) -> Path:
    """A dataset of questions with the towers of three device classes."""
    rng, draws = np.random.default_rng(0), torch.Generator().manual_seed(0)
    present = np.ones(N_ITEMS, dtype=bool)
    features = {
        name: Features(rng.normal(size=(N_ITEMS, dim)).astype(np.float32), present, f"random-{dim}")
        for name, dim in DIMS.items()
    }
    ids = tuple(f"i{n:03d}" for n in range(N_ITEMS))
    Catalogue(ids, ids, ("",) * N_ITEMS, ("",) * N_ITEMS, features).save(folder)
    (folder / "dataset.json").write_text("{}")
    asked = folder / "questions"
    words, image, text = (normalize(torch.randn(n, TOWER_DIM, generator=draws), dim=1) for n in (2, N_ITEMS, N_ITEMS))
    Codebook(words, image, text, ("left", "right")).save(asked / "codebook.safetensors")
    write_tensors(asked / "public.safetensors", {"rows": torch.arange(N_PUBLIC)})
    seen = torch.from_numpy(features["image"].values)
    for client in range(n_clients):
        for part, items in (("train", range(N_PUBLIC)), ("test", range(N_PUBLIC, N_ITEMS))):
            questions(client, items, seen).save(asked / f"client-{client:02d}" / f"{part}.safetensors")
    for name in READERS:
        save_reader(reader(name), tower_path(folder, name), {})
    return folder


def count_as_fitted(dataset: Path) -> None:
    """Label the towers of a dataset as what a fit would give, which takes minutes, so that none is begun."""
    catalogue = load_catalogue(dataset)
    keys = fit_keys(catalogue, public_rows(dataset, catalogue), STEPS)
    for name in READERS:
        about = {"class": name, "key": keys[name], "accuracy": 0.5}
        save_reader(load_reader(tower_path(dataset, name)), tower_path(dataset, name), about)


def qa_settings(**changes: Any) -> Settings:
    """A few quick rounds; `changes` replace single settings, but of `mosaic` and `evaluation` only what they name."""
    mosaic = {
        "classes": ["tiny", "small"],
        "rank": RANK,
        "method": {"name": "fedmosaic", "blocks": BLOCKS},
        "steps": 4,
        "batch": 8,
    }
    changes = overlaid({"mosaic": mosaic, "evaluation": {"every": 1, "baselines": False}}, changes)
    data = {"folder": "qa-devices", "kind": "questions"}
    content = {"name": "qa-devices", "data": data, "strategy": "fedmosaic", "rounds": 3, "device": "cpu"}
    return parse_settings(content | changes, "test")


def qa_job(dataset: Path, run_dir: Path, nodes: int = 3, resume: bool = False, **changes: Any) -> Job:
    """A job on a dataset of questions."""
    federation = {"nodes": nodes, **changes.pop("federation", {})}
    return make_job(qa_settings(federation=federation, **changes), dataset, run_dir, resume, overwrite=False)


@dataclass(frozen=True)
class Exchange:
    """One thing that a node was asked, with what came along for it, and its answer."""

    node: int
    task: Task
    question: RecordDict
    reply: RecordDict

    @cached_property
    def down(self) -> Tensors:
        """All tensors that went down, by name."""
        _, tensors, inputs = unpack_task(self.question)
        return {**(tensors or {}), **inputs}

    @cached_property
    def update(self) -> Update:
        """What came up."""
        return unpack_update(self.reply, [ADAPTERS])

    @property
    def raw(self) -> bytes:
        """Both contents as Flower's gRPC connections carry them."""
        parts = (get_all_nested_objects(content).values() for content in (self.question, self.reply))
        return b"".join(part.deflate() for message in parts for part in message)


Spoil = Callable[[int, Task, Update], Update | None]
"""What a node returns instead; None for an empty update where it is out of reach."""


def tapped(exchanges: list[Exchange], spoil: Spoil = lambda node, task, update: update) -> type[InlineGrid]:
    """The inline grid that notes all that is properly answered, and whose nodes may be made to misbehave.

    Where a message asks several things, what comes along comes for the first of them.
    """

    class Tap(InlineGrid):
        def _handle(self, message: Message) -> Message:
            node, task = message.metadata.dst_node_id, unpack_task(message.content)[0]
            if spoil(node, task, Update()) is None:
                return Message(Error(CLIENT_APP_FAILED, "out of reach"), reply_to=message)
            reply = super()._handle(message)
            if "sums" not in reply.content.metric_records:  # tensors are missing, or the node refused
                return reply
            answers, question = split_answers(task, reply.content), message.content
            for one in task.asks():
                update = unpack_update(answers[one.kind], [ADAPTERS])
                spoilt = spoil(node, one, update)
                if spoilt is not None and spoilt is not update:
                    forged = pack_update(spoilt)
                    forged["answers"] = answers[one.kind]["answers"]
                    answers[one.kind] = forged
                exchanges.append(Exchange(node, one, question, answers[one.kind]))
                question = RecordDict({"task": question["task"], "inputs": ArrayRecord()})
            return Message(join_answers(task, answers), reply_to=message)

    return Tap


def naive_mix(sent: Mapping[str, AdapterUpdate], receiver: str, relevant: bool) -> dict[str, Tensor]:
    """G_i, one sender and one tensor after the other: FedMosaic Eq. 4 at temperature 0.5, or evenly."""

    def mean(part: str, senders: list[str]) -> dict[str, Tensor]:
        others = [sender for sender in senders if sender != receiver] or [receiver]
        counted = others if relevant else senders
        own = sent[receiver].signature.double()
        scores = {
            sender: math.exp(float(own @ theirs / (own.norm() * theirs.norm())) / 0.5) if relevant else 1.0
            for sender, theirs in ((sender, sent[sender].signature.double()) for sender in counted)
        }
        return {
            name: sum(
                scores[sender] / sum(scores.values()) * getattr(sent[sender], part)[name].double() for sender in counted
            ).float()
            for name in getattr(sent[receiver], part)
        }

    kin = [sender for sender in sent if sent[sender].tower == sent[receiver].tower]
    return mean("pq", list(sent)) | mean("lora", kin)
