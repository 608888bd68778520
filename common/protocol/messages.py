"""Turns what travels between server and devices into Flower's records, and reads it.

Down: a `Task` (what to do, with which settings) and tensors named by a content hash. Up: for each thing that was asked an
`Update` (`tessera.common.protocol.updates`). Nothing else has a place in a message; a test serialises every message of a run
and looks for private tensors.
"""

from __future__ import annotations  # Flower is imported late: recommending, and reading settings, can do without it

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from torch import Tensor

from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import NAME
from tessera.common.errors import DataError, ProtocolError
from tessera.common.protocol.tensors import Tensors, content_hash, from_record, to_record
from tessera.common.secure.fixed_point import Spec

if TYPE_CHECKING:
    from flwr.app import ConfigRecord, RecordDict

PROTOCOL = 1
"""Version of what messages hold: raised when one side could no longer work with the other's as it was. Keys that may be left
out are added without: devices leave out those they do not know."""
Kind = Literal["item_statistics", "power", "aspects", "train", "evaluate", "baselines", "select"]

RIDERS: frozenset[Kind] = frozenset({"baselines", "evaluate"})
"""What may be asked along with something else: it changes nothing on a device."""

VIEWS, HISTORY = "views", "history"
"""Names of the tensors of a broadcast: the views [n_views, n_items, dim] and the history view [n_items, dim]."""

COUNTS, CONTENT, BASIS = "counts", "content/", "basis"
"""Names of a task's inputs, which are about items: training events of each [n_items], CONTENT + modality for unit features
[n_items, width], and the basis of a power iteration [n_items, width]."""
COHESION = "cohesion"
"""Name of how alike people's items are in each view (`tessera.client.aspects.cohesion`): of a broadcast's tensor [n_views],
the mean over people, for which no gradient is wanted; and of counts [2, n_views], a device's sum, and over how many people."""
BLOCKS = "blocks"
"""Name of the number of each dimension's block [dim]: of a broadcast's tensor, for which no gradient is wanted, where people's
gates weigh blocks of dimensions, and of an input."""
ASPECTS = "aspects/"
"""Prefix of a task's input, items in the coordinates so far [n_items, dim], and of the counts [dim, dim] that come back, by the
step in which blocks of dimensions are found (`tessera.client.aspects.facets`)."""
FacetStep = Literal["spread", "independence", "together", "cohesion"]
GROUP_MAPS, GROUP_CENTRES, GROUP_STATES, GROUP_PEOPLE = "group_maps", "group_centres", "group_states", "group_people"
"""Names of the maps of groups of people [n_groups * rank, dim], which are learnt; of what people are divided by [n_groups, _],
an input and, once they are, of a broadcast, for which no gradient is wanted; of the items [n_items, dim] in which states are
summed, and the sums [n_groups, dim + 1]; of the people of each group in a round's sum [n_groups]."""
FIXED = frozenset({COHESION, BLOCKS, GROUP_CENTRES})
"""Tensors of a broadcast for which no gradient is wanted."""
MORE_COLUMNS = 16
"""Columns of a basis beyond the wanted ones: they make the wanted ones converge faster (Halko, Martinsson & Tropp 2011)."""
CATALOGUE = "catalogue"
"""Name of the record that says which catalogue a device has, or what changed in it."""
MOST_MASKED = 2**27
"""Numbers in a masked answer, at most: a device makes room for what a server says that there will be."""


def basis_columns(rank: int, n_items: int) -> int:
    """How many columns a server asks about for `rank` singular vectors of interactions with `n_items` items."""
    return min(rank + MORE_COLUMNS, n_items)


@dataclass(frozen=True)
class Broadcast:
    """Tensors for one or more devices, called by their content as it travels.

    `tensors` are what gradients come back for, `written` the same as `tessera.common.protocol.codecs` writes it (None: as they
    are), and `fixed` goes along as it is, with no gradient wanted.
    """

    tensors: Tensors = field(default_factory=dict)
    written: Tensors | None = None
    fixed: Tensors = field(default_factory=dict)

    @property
    def content(self) -> Tensors:
        """What travels."""
        return {**(self.tensors if self.written is None else self.written), **self.fixed}

    @cached_property
    def name(self) -> str:
        """Content hash of what travels; "" when there is nothing."""
        return content_hash(self.content) if self.content else ""

    @cached_property
    def shared(self) -> str:
        """Content hash of what all devices are sent alike."""
        return content_hash(self.tensors if self.written is None else self.written) if self.fixed else self.name


class Ask(NamedTuple):
    """What a device does before its task, in the same message: the kind of it, and the round it is of."""

    kind: Kind
    round: int


class Ancestor(NamedTuple):
    """A run that another one goes on from, and the last round of it that counts."""

    run: str
    round: int


@dataclass(frozen=True)
class Masking:
    """How the answers to a task are masked, so that they can be read as the sum of a group alone (`tessera.common.secure`).

    `epoch` is that of the keys, `asks` the number in it of each thing that is asked, and `tables` are what is added up of the
    task's own answer beside its weight and figures.
    """

    epoch: int
    asks: tuple[int, ...]
    tables: tuple[Spec, ...]

    def write(self) -> str:
        """As it travels."""
        tables = [[spec.name, spec.shape, spec.kind, spec.bound] for spec in self.tables]
        return json.dumps({"epoch": self.epoch, "asks": self.asks, "tables": tables})

    @staticmethod
    def read(text: str) -> Masking | None:
        """Read what `write` wrote; None for "". Raises `DataError` for anything else."""
        if not text:
            return None
        try:
            said = json.loads(text)
            tables = tuple(Spec(str(name), tuple(shape), kind, bound) for name, shape, kind, bound in said["tables"])
            if sum(table.size for table in tables) > MOST_MASKED:
                raise ValueError("more than any device has")
            return Masking(int(said["epoch"]), tuple(map(int, said["asks"])), tables)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
            raise DataError("the server's task does not say properly how its answer is to be masked") from None


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
    settings: DeviceSettings
    tensors: str = ""
    """Content hash of the tensors the task works on; the tensors themselves travel only to who lacks them."""
    selected: int = 0
    """The round that is best on validation so far; 0: none was evaluated."""
    also: tuple[Ask, ...] = ()
    """What is asked along: done before the task, in this order, on the same tensors and from the states of its own round."""
    components: tuple[tuple[float, ...], ...] = ()
    """Directions of the views along which gradients come back, see `tessera.common.protocol.projection`; none: of all views.
    What devices of older versions send, who do not know of them, is projected by the server."""
    masking: Masking | None = None
    """How the answers are masked; None where each device's is read as it is."""
    continues: tuple[Ancestor, ...] = ()
    """The runs that this one goes on from, the nearest first: who has no private state in it yet has the one of those."""

    def asks(self) -> tuple[Task, ...]:
        """All that is asked, each a task, in the order in which it is done; the last one is this one."""
        along = [replace(self, kind=kind, round=round, also=()) for kind, round in self.also]
        if self.masking is None:
            return (*along, self)
        own = [replace(self.masking, asks=(number,)) for number in self.masking.asks]
        return tuple(replace(task, masking=one) for task, one in zip((*along, self), own, strict=True))

    def without_last(self) -> Task | None:
        """What was asked along, without the task itself; None where nothing was."""
        if not self.also:
            return None
        masking = self.masking and replace(self.masking, asks=self.masking.asks[:-1])
        *before, last = self.also
        return replace(self, kind=last.kind, round=last.round, also=tuple(before), masking=masking)


def pack_task(task: Task, tensors: Tensors | None = None, inputs: Tensors | None = None) -> RecordDict:
    """Build a message's content; `tensors` go along only when the device lacks them, `inputs`, tensors about items, always."""
    from flwr.app import ConfigRecord, RecordDict

    content = RecordDict({"task": ConfigRecord(header_of(task)), "inputs": to_record(inputs or {})})
    if tensors is not None:
        content["tensors"] = to_record(tensors)
    return content


def header_of(task: Task) -> dict[str, Any]:
    """All that a task says, as it travels."""
    return {
        "protocol": PROTOCOL,
        "kind": str(task.kind),
        "run": task.run,
        "round": task.round,
        "durable": list(task.durable),
        "views": list(task.views),
        "catalogue": task.catalogue,
        "settings": task.settings.model_dump_json(),
        "tensors": task.tensors,
        "selected": task.selected,
        "also": [str(ask.kind) for ask in task.also],
        "also_rounds": [ask.round for ask in task.also],
        "components": [share for row in task.components for share in row],
        "masking": task.masking.write() if task.masking else "",
        "continues": [one.run for one in task.continues],
        "continues_rounds": [one.round for one in task.continues],
    }


def unpack_task(content: RecordDict) -> tuple[Task, dict[str, Tensor] | None, dict[str, Tensor]]:
    """Read what `pack_task` built, task, tensors and inputs; None for tensors that did not come along.

    Raises `ProtocolError` for another version's, and `DataError` when the run or the hash could not be the name of a file, as
    both are used, when something is asked along that must not be, or for what is no task at all. What the header says beside
    what a task has is left out.
    """
    try:
        return _unpacked(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # what a header is made of, and pydantic's own
        raise DataError(f"what came is no task of a server of ours: {type(error).__name__}") from None


def _unpacked(content: RecordDict) -> tuple[Task, dict[str, Tensor] | None, dict[str, Tensor]]:
    header: dict[str, Any] = dict(content.config_records["task"])
    check_protocol(header, "the server", "this device")
    header["settings"] = DeviceSettings.read(header["settings"])
    header["durable"], header["views"] = tuple(header["durable"]), tuple(header["views"])
    header["also"] = tuple(map(Ask, header.get("also", ()), header.get("also_rounds", ())))
    header["continues"] = tuple(map(Ancestor, header.get("continues", ()), header.get("continues_rounds", ())))
    header["components"] = _rows(header.get("components", ()), len(header["views"]))
    header["masking"] = Masking.read(header.get("masking", ""))
    task = Task(**{one.name: header[one.name] for one in fields(Task) if one.name in header})
    runs = (task.run, *(one.run for one in task.continues))
    if not all(re.fullmatch(NAME, run) for run in runs) or not re.fullmatch("[0-9a-f]{64}|", task.tensors):
        raise DataError("the server's task names a run or tensors that no server of ours would name")
    asked = [*(ask.kind for ask in task.also), task.kind]
    if task.masking and len(task.masking.asks) != len(asked):
        raise DataError("the server's task has not one number for each thing it asks to be masked")
    if len(set(asked)) < len(asked) or not RIDERS.issuperset(asked[:-1]):
        raise DataError("the server's task asks for things together that no server of ours would")
    carried = content.array_records.get("tensors")
    return task, None if carried is None else from_record(carried), from_record(content.array_records["inputs"])


def _rows(flat: Sequence[float], width: int) -> tuple[tuple[float, ...], ...]:
    """Rows of `width` numbers. Raises `DataError` where there is not a whole number of them."""
    if len(flat) % max(width, 1):
        raise DataError("the server's task has components of other views than it names")
    return tuple(tuple(map(float, flat[at : at + width])) for at in range(0, len(flat), max(width, 1)))


def in_answer_to(task: Task) -> ConfigRecord:
    """Say which task a reply answers, so that one that comes late or twice is taken for nothing else."""
    from flwr.app import ConfigRecord

    return ConfigRecord({"protocol": PROTOCOL, "kind": task.kind, "run": task.run, "round": task.round})


def join_answers(task: Task, answers: Mapping[Kind, RecordDict]) -> RecordDict:
    """Build a reply from the answers to all that a task asks: to what was asked along, with its kind in front of each name."""
    from flwr.app import RecordDict

    return RecordDict(
        {
            name if kind == task.kind else f"{kind}/{name}": record
            for kind, answer in answers.items()
            for name, record in answer.items()
        }
    )


def split_answers(task: Task, content: RecordDict) -> dict[Kind, RecordDict]:
    """Undo `join_answers` on what anybody may have sent. A refusal of the task is one of all that is not answered."""
    from flwr.app import RecordDict

    answers = {ask.kind: RecordDict() for ask in task.asks()}
    for name, record in content.items():
        kind = next((ask.kind for ask in task.also if name.startswith(f"{ask.kind}/")), None)
        answers[kind or task.kind][name.removeprefix(f"{kind}/")] = record
    if "refusal" in content:
        answers = {kind: answer or RecordDict({"refusal": content["refusal"]}) for kind, answer in answers.items()}
    return answers


def check_protocol(header: Mapping[str, Any], other: str, own: str) -> None:
    """Raise `ProtocolError`, which names both versions, unless what came is of this one."""
    version = header.get("protocol", "none")
    if version != PROTOCOL:
        raise ProtocolError(
            f"{other} speaks protocol {str(version)[:20]}, {own} {PROTOCOL}: install the same Tessera on both"
        )


def missing_tensors(tensors: str) -> RecordDict:
    """Build the reply of a device that does not hold the tensors called `tensors`: the server sends them again."""
    from flwr.app import ConfigRecord, RecordDict

    return RecordDict({"missing": ConfigRecord({"tensors": tensors})})


def catalogue_outdated(held: str) -> RecordDict:
    """Build the reply of a device that has an earlier catalogue than its task: the server sends what changed since the one that
    the device says it has `held`. It is a refusal too, for servers that do not know of it."""
    from flwr.app import ConfigRecord

    reply = refusal("the device has another version of the catalogue")
    reply[CATALOGUE] = ConfigRecord({"held": held})
    return reply


def held_catalogue(content: RecordDict) -> str | None:
    """What a device says of its catalogue that `catalogue_outdated` built, by anybody; None for any other reply."""
    record = content.config_records.get(CATALOGUE)
    return None if record is None else str(record.get("held", ""))


def with_catalogue(content: RecordDict, change: bytes) -> RecordDict:
    """Let a task go along with what changed in the catalogue."""
    from flwr.app import ConfigRecord

    if change:
        content[CATALOGUE] = ConfigRecord({"change": change})
    return content


def catalogue_change(content: RecordDict) -> bytes:
    """What came along with a task of what changed in the catalogue; b"" where nothing did."""
    record = content.config_records.get(CATALOGUE)
    change = record.get("change") if record is not None else None
    return change if isinstance(change, bytes) else b""


class Refusal(NamedTuple):
    """Why a device does not do what it was asked: in words for the server's operator, and the kind of it where there is one."""

    reason: str
    kind: str = ""


def refusal(reason: str, kind: str = "") -> RecordDict:
    """Build the reply of a device that does not do its task."""
    from flwr.app import ConfigRecord, RecordDict

    said = {"reason": reason} | ({"kind": kind} if kind else {})
    return RecordDict({"refusal": ConfigRecord(dict(said))})


def refused(content: RecordDict) -> Refusal | None:
    """What a reply says that `refusal` built, by anybody; None for any other reply."""
    record = content.config_records.get("refusal")
    return None if record is None else Refusal(str(record.get("reason", "")), str(record.get("kind", "")))
