"""Defines what a device sends back: an update, which is a mapping of named parts that can be added up.

Whoever copies an update, as clipping and noise do, copies with `dataclasses.replace` or `put`, and so keeps the parts that
they do not know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tessera.common.errors import RunError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.parts import EVERYBODYS, GRADIENTS_PART, Part
from tessera.common.protocol.tensors import Tensors

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from tessera.common.protocol.parts import Record

ANSWERS = "answers"
"""Name of the record by which a reply says which task it answers."""
T = TypeVar("T")


@dataclass(frozen=True)
class Update:
    """What devices return. Additive: (a + b) is what one device hosting the users of both would have returned.

    `gradients` are sums over users of weight times dL/d(what was sent), `weight` the sum of those weights, `sums` named
    metric sums, `counts` named sums of vectors, and `parts` what a strategy has of its own: `update[PART]` reads one.
    """

    gradients: Tensors = field(default_factory=dict)
    weight: float = 0.0
    sums: MetricSums = field(default_factory=MetricSums)
    counts: Tensors = field(default_factory=dict)
    parts: Mapping[Part[Any], Any] = field(default_factory=dict)

    def __getitem__(self, part: Part[T]) -> T:
        """What the update holds of `part`; the part's zero where it holds nothing."""
        value: T = getattr(self, part.name) if part in EVERYBODYS else self.parts.get(part, part.zero())
        return value

    def put(self, part: Part[T], value: T) -> Update:
        """The same update with `value` for `part`."""
        changes: dict[str, Any] = {part.name: value} if part in EVERYBODYS else {"parts": {**self.parts, part: value}}
        return replace(self, **changes)

    def without(self, part: Part[Any]) -> Update:
        """The same update without a part that not everybody has."""
        return replace(self, parts={other: value for other, value in self.parts.items() if other is not part})

    def held(self) -> tuple[Part[Any], ...]:
        """The parts it says something of, everybody's first."""
        return (*EVERYBODYS, *self.parts)

    def __add__(self, other: Update) -> Update:
        """Add part by part."""
        total = Update()
        for part in dict.fromkeys((*self.held(), *other.held())):
            total = total.put(part, part.add(self[part], other[part]))
        return total

    def clients(self) -> list[str]:
        """Names of the clients that it speaks for; none where it says nothing of who is in it."""
        return sorted({name for part in self.held() for name in part.clients(self[part])})


def check_gradients(update: Update, sent: Tensors) -> None:
    """Raise `RunError` unless an update holds a finite gradient of the right shape for everything that was sent to be learnt,
    and for nothing else. One whose users all sat the round out holds none, and no weight.
    """
    if strange := update.gradients.keys() - sent.keys():
        raise RunError(f"a gradient for {min(strange)!r}, which was not sent")
    if not update.gradients and not update.weight:
        return
    for name, tensor in sent.items():
        gradient = update.gradients.get(name)
        if gradient is None or gradient.shape != tensor.shape:
            found = "no gradient" if gradient is None else f"a gradient of shape {tuple(gradient.shape)}"
            raise RunError(f"{found} for {name!r}, which was sent with shape {tuple(tensor.shape)}")
    GRADIENTS_PART.check(update.gradients)


def pack_update(update: Update) -> RecordDict:
    """Build a reply's content: each part's records, by the part's name and what follows it."""
    from flwr.app import RecordDict

    return RecordDict(
        {f"{part.name}{after}": record for part in update.held() for after, record in part.write(update[part]).items()}
    )


def unpack_update(content: RecordDict, parts: Iterable[Part[Any]] = ()) -> Update:
    """Read what `pack_update` built of everybody's parts, and of those `parts` of a strategy that came along.

    Records of anything else are refused: a server takes no more than it asked for. The gradients are still as they travelled,
    which `tessera.common.protocol.codecs` reads. Raises `RunError` for what is malformed.
    """
    update, wanted = Update(), (*EVERYBODYS, *parts)
    if strange := [
        name for name in content if name.partition(".")[0] not in {ANSWERS, *(part.name for part in wanted)}
    ]:
        raise RunError(f"it holds {min(strange)!r}, which nobody asked for")
    for part in wanted:
        records = _records(content, part)
        if records or part in EVERYBODYS:
            update = update.put(part, part.read(records))
    return update


def _records(content: RecordDict, part: Part[Any]) -> dict[str, Record]:
    """The records of a message that belong to a part, by what follows its name."""
    return {
        name.removeprefix(part.name): record
        for name, record in content.items()
        if name == part.name or name.startswith(f"{part.name}.")
    }
