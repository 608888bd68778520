"""What travels between server and devices: typed, additive payloads and their Flower records.

Down: a `Task` (what to do, with which settings) and tensors named by a content hash. Up: an `Update`.
Nothing else has a place in a message; a test serialises every message of a run and looks for private tensors.
"""

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Any, Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from torch import Tensor

from tessera.common.config.settings import NAME, Settings
from tessera.common.errors import DataError, NotFiniteError, RunError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.adapters import MODULE, AdapterUpdate, flatten, unflatten
from tessera.common.utils.torch_device import finite

Tensors = Mapping[str, Tensor]
Kind = Literal["item_statistics", "power", "train", "evaluate", "baselines"]

VIEWS, HISTORY = "views", "history"
"""Names of the tensors of a broadcast: the views [n_views, n_items, dim] and the history view [n_items, dim]."""

COUNTS, CONTENT, BASIS = "counts", "content/", "basis"
"""Names of facts about items: training events of each [n_items], CONTENT + modality for unit features [n_items, width], and
the basis of a power iteration [n_items, width]."""


@dataclass(frozen=True)
class Broadcast:
    """Tensors for one or more devices, called by their content as it travels.

    `tensors` are what gradients come back for, `written` the same as `tessera.common.protocol.codecs` writes it; None: as they
    are.
    """

    tensors: Tensors
    written: Tensors | None = None

    @property
    def content(self) -> Tensors:
        """What travels."""
        return self.tensors if self.written is None else self.written

    @cached_property
    def name(self) -> str:
        """Content hash of what travels; "" when there is nothing."""
        return content_hash(self.content) if self.content else ""


@dataclass(frozen=True)
class Task:
    """What a device is asked to do.

    `durable` are the rounds the server has checkpoints of: a device keeps its private state of each, so that a resumed run
    can go back to it. `views` names the views in their order, for the person at the device to read. `catalogue` is the
    catalogue's hash: a device with other items refuses.
    """

    kind: Kind
    run: str
    round: int
    durable: tuple[int, ...]
    views: tuple[str, ...]
    catalogue: str
    settings: Settings
    tensors: str = ""
    """Content hash of the tensors the task works on; the tensors themselves travel only to who lacks them."""


@dataclass(frozen=True)
class Update:
    """What devices return. Additive: (a + b) is what one device hosting the users of both would have returned.

    `gradients` are sums over users of weight times dL/d(what was sent), `weight` the sum of those weights, `sums` named
    metric sums, `counts` named sums of vectors. `modules` are the adapters of clients and `towers` the clients' device
    classes, both by client: adding puts them side by side.
    """

    gradients: Tensors = field(default_factory=dict)
    weight: float = 0.0
    sums: MetricSums = field(default_factory=MetricSums)
    counts: Tensors = field(default_factory=dict)
    modules: Mapping[str, AdapterUpdate] = field(default_factory=dict)
    towers: Mapping[str, str] = field(default_factory=dict)

    def __add__(self, other: "Update") -> "Update":
        """Add field by field, name by name."""
        return Update(
            add(self.gradients, other.gradients),
            self.weight + other.weight,
            self.sums + other.sums,
            add(self.counts, other.counts),
            {**self.modules, **other.modules},
            {**self.towers, **other.towers},
        )


def add(left: Tensors, right: Tensors) -> dict[str, Tensor]:
    """Add tensors name by name; a name absent on one side counts as 0 there. Raises `RunError` when shapes differ."""
    for name in left.keys() & right.keys():
        if left[name].shape != right[name].shape:
            raise RunError(
                f"{name!r} has shape {tuple(right[name].shape)} from one device, {tuple(left[name].shape)} from another"
            )
    both = {name: left[name] + value for name, value in right.items() if name in left}
    return {**left, **right, **both}


def check_gradients(update: Update, sent: Tensors) -> None:
    """Raise `RunError` unless an update holds a finite gradient of the right shape for everything that was sent, modules
    aside, and for nothing else. One whose users all sat the round out holds none, and no weight.
    """
    if strange := update.gradients.keys() - sent.keys():
        raise RunError(f"a gradient for {min(strange)!r}, which was not sent")
    if not update.gradients and not update.weight:
        return
    for name, tensor in ((name, tensor) for name, tensor in sent.items() if not name.startswith(MODULE)):
        gradient = update.gradients.get(name)
        if gradient is None or gradient.shape != tensor.shape:
            found = "no gradient" if gradient is None else f"a gradient of shape {tuple(gradient.shape)}"
            raise RunError(f"{found} for {name!r}, which was sent with shape {tuple(tensor.shape)}")
        if not finite(gradient):
            raise NotFiniteError(f"the gradient for {name!r} is not finite")


def content_hash(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = to_numpy(tensors[name])
        state.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        state.update(array.data)
    return state.hexdigest()


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a contiguous array on the CPU."""
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array


def pack_task(task: Task, tensors: Tensors | None = None, facts: Tensors | None = None) -> RecordDict:
    """Build a message's content; `tensors` go along only when the device lacks them, `facts` about the items always."""
    header = ConfigRecord(
        {
            "kind": task.kind,
            "run": task.run,
            "round": task.round,
            "durable": list(task.durable),
            "views": list(task.views),
            "catalogue": task.catalogue,
            "settings": task.settings.model_dump_json(),
            "tensors": task.tensors,
        }
    )
    content = RecordDict({"task": header, "facts": _arrays(facts or {})})
    if tensors is not None:
        content["tensors"] = _arrays(tensors)
    return content


def unpack_task(content: RecordDict) -> tuple[Task, dict[str, Tensor] | None, dict[str, Tensor]]:
    """Read what `pack_task` built, task, tensors and facts; None for tensors that did not come along.

    Raises `DataError` when the run or the hash could not be the name of a file: both are used as one.
    """
    header: dict[str, Any] = dict(content.config_records["task"])
    header["settings"] = Settings.model_validate_json(header["settings"])
    header["durable"], header["views"] = tuple(header["durable"]), tuple(header["views"])
    task = Task(**header)
    if not re.fullmatch(NAME, task.run) or not re.fullmatch("[0-9a-f]{64}|", task.tensors):
        raise DataError("the server's task names a run or tensors that no server of ours would name")
    carried = content.array_records.get("tensors")
    return task, None if carried is None else _tensors(carried), _tensors(content.array_records["facts"])


def pack_update(update: Update) -> RecordDict:
    """Build a reply's content."""
    return RecordDict(
        {
            "gradients": _arrays(update.gradients),
            "counts": _arrays(update.counts),
            "sums": MetricRecord({"weight": update.weight, **update.sums.values}),
            "modules": _arrays(flatten(update.modules)),
            "towers": ConfigRecord(dict(update.towers)),
        }
    )


def unpack_update(content: RecordDict) -> Update:
    """Read what `pack_update` built; the gradients still as they travelled, which `tessera.common.protocol.codecs` reads."""
    sums = {name: float(value) for name, value in content.metric_records["sums"].items()}  # type: ignore[arg-type]
    towers = {client: str(tower) for client, tower in content.config_records["towers"].items()}
    return Update(
        _tensors(content.array_records["gradients"]),
        sums.pop("weight"),
        MetricSums(sums),
        _tensors(content.array_records["counts"]),
        unflatten(_tensors(content.array_records["modules"]), towers),
        towers,
    )


def in_answer_to(task: Task) -> ConfigRecord:
    """Say which task a reply answers, so that one that comes late or twice is taken for nothing else."""
    return ConfigRecord({"kind": task.kind, "run": task.run, "round": task.round})


def missing_tensors(tensors: str) -> RecordDict:
    """Build the reply of a device that does not hold the tensors called `tensors`: the server sends them again."""
    return RecordDict({"missing": ConfigRecord({"tensors": tensors})})


def refusal(reason: str) -> RecordDict:
    """Build the reply of a device that cannot do its task, with the reason in words for the server's operator."""
    return RecordDict({"refusal": ConfigRecord({"reason": reason})})


def array_bytes(content: RecordDict) -> int:
    """How many bytes of tensors a message carries."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _arrays(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(to_numpy(tensor)) for name, tensor in tensors.items()})


def _tensors(record: ArrayRecord) -> dict[str, Tensor]:
    return {name: _tensor(name, array) for name, array in record.items()}


def _tensor(name: str, array: Array) -> Tensor:
    """An array as it came. Raises `RunError` unless it is as long as it says: a few bytes must not make anybody make room for
    terabytes."""
    try:
        stream = BytesIO(array.data)
        header = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(stream)]
        shape, _, kind = header(stream)
        if math.prod(shape) * kind.itemsize != len(array.data) - stream.tell():
            raise ValueError("it is not as long as it says")
        return torch.from_numpy(array.numpy())
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{name!r} came as no array of numbers: {error}") from None
