"""Defines the parts that an update can have: how each adds up, what makes it proper, and how it travels.

Everybody knows four: gradients, weight, sums and counts. A strategy may have parts of its own, such as FedMosaic's adapters
(`tessera.common.protocol.adapters`): it lists them in its `StrategySpec`, and nobody else needs to know of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tessera.common.errors import NotFiniteError, RunError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.tensors import Tensors, add, from_record, to_record
from tessera.common.utils.torch_device import finite

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

    Record = ArrayRecord | ConfigRecord | MetricRecord

T = TypeVar("T")


class Part(ABC, Generic[T]):
    """One kind of thing that an update may hold: how it adds up, what makes it proper, and how it travels.

    Law: `add` is associative and commutative, with `zero()` as its neutral element, so that the order in which devices answer
    changes nothing (floating-point sums: to rounding). `read(write(x))` is x.
    """

    name: str
    """Its name in an update, and the beginning of its records' names in a message."""

    @abstractmethod
    def zero(self) -> T:
        """What an update holds that says nothing of it."""

    @abstractmethod
    def add(self, left: T, right: T) -> T:
        """What one device would have returned that hosts the users of both; neither side is changed."""

    @abstractmethod
    def check(self, value: T) -> None:
        """Raise `NotFiniteError` or `RunError` for a value that is not to be added, whatever was asked for."""

    @abstractmethod
    def write(self, value: T) -> dict[str, Record]:
        """Its records in a message, by what follows the part's name in theirs."""

    @abstractmethod
    def read(self, records: Mapping[str, Record]) -> T:
        """Undo `write` on what anybody may have sent. Raises `RunError` or `KeyError` for what `write` cannot have written."""

    def clients(self, value: T) -> Iterable[str]:
        """Names of the clients that a value speaks for; none where it is a sum that says nothing of who is in it."""
        return ()

    def __repr__(self) -> str:
        return f"the part {self.name!r}"


class TensorSums(Part[Tensors]):
    """Tensors that add up name by name."""

    def __init__(self, name: str, called: str) -> None:
        self.name, self.called = name, called

    def zero(self) -> Tensors:
        """No tensors."""
        return {}

    def add(self, left: Tensors, right: Tensors) -> Tensors:
        """Name by name; a name that is absent on one side counts as 0 there."""
        return add(left, right)

    def check(self, value: Tensors) -> None:
        """Each must be finite."""
        for name, tensor in value.items():
            if not finite(tensor):
                raise NotFiniteError(f"{self.called.format(name)} is not finite")

    def write(self, value: Tensors) -> dict[str, Record]:
        """One record of arrays."""
        return {"": to_record(value)}

    def read(self, records: Mapping[str, Record]) -> Tensors:
        """Read the record of arrays."""
        return from_record(arrays(records))


class Weight(Part[float]):
    """How much the gradients weigh: the sum of the weights of the users in them."""

    name = "weight"

    def zero(self) -> float:
        """Nobody."""
        return 0.0

    def add(self, left: float, right: float) -> float:
        """Add two numbers."""
        return left + right

    def check(self, value: float) -> None:
        """A finite number that is not negative."""
        if not math.isfinite(value):
            raise NotFiniteError("its weight is no finite number")
        if value < 0:
            raise RunError("its weight is negative")

    def write(self, value: float) -> dict[str, Record]:
        """One number."""
        from flwr.app import MetricRecord

        return {"": MetricRecord({"value": value})}

    def read(self, records: Mapping[str, Record]) -> float:
        """Read the number."""
        return _numbers(records).get("value", math.nan)


class Sums(Part[MetricSums]):
    """Named sums over users: losses, hits, numbers of people."""

    name = "sums"

    def zero(self) -> MetricSums:
        """No sums."""
        return MetricSums()

    def add(self, left: MetricSums, right: MetricSums) -> MetricSums:
        """Name by name."""
        return left + right

    def check(self, value: MetricSums) -> None:
        """Each must be finite; which may be negative depends on the task."""
        if not all(map(math.isfinite, value.values.values())):
            raise NotFiniteError("a sum of its metrics is no finite number")

    def write(self, value: MetricSums) -> dict[str, Record]:
        """One record of numbers."""
        from flwr.app import MetricRecord

        return {"": MetricRecord(dict(value.values))}

    def read(self, records: Mapping[str, Record]) -> MetricSums:
        """Read the numbers."""
        return MetricSums(_numbers(records))


GRADIENTS_PART = TensorSums("gradients", "the gradient for {!r}")
WEIGHT_PART = Weight()
SUMS_PART = Sums()
COUNTS_PART = TensorSums("counts", "{!r}")
EVERYBODYS: tuple[Part[Any], ...] = (GRADIENTS_PART, WEIGHT_PART, SUMS_PART, COUNTS_PART)
"""The parts that every update has, in fields of their own."""


def arrays(records: Mapping[str, Record], name: str = "") -> ArrayRecord:
    """The record of arrays of that name. Raises `RunError` where it is missing or another kind of record."""
    from flwr.app import ArrayRecord

    record = records.get(name)
    if not isinstance(record, ArrayRecord):
        raise RunError("it came without its tensors")
    return record


def _numbers(records: Mapping[str, Record]) -> dict[str, float]:
    from flwr.app import MetricRecord

    record = records.get("")
    if not isinstance(record, MetricRecord):
        raise RunError("it came without its numbers")
    return {name: float(value) for name, value in record.items()}  # type: ignore[arg-type]
