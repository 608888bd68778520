"""Defines what of an update is masked in a secure sum (`tessera.common.secure`), and how a task asks for it.

Of every answer the gradients, counts, weight and figures are masked: all that every update has. Parts that a strategy has of
its own travel beside them as they are. Tables in words of 16 bits are masked, and added up, turned by a public rotation.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tessera.common.errors import RunError, SecureSumError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol import linear
from tessera.common.protocol.codecs import rotation
from tessera.common.protocol.figures import LOSS, NONFINITE, SCALED, figure_names
from tessera.common.protocol.messages import RIDERS, Task, header_of
from tessera.common.protocol.parts import Part, arrays
from tessera.common.protocol.tensors import Tensors, content_hash, from_record, to_record
from tessera.common.protocol.updates import Update
from tessera.common.secure.fixed_point import Layout, Spec
from tessera.common.secure.messages import MaskedUpload
from tessera.common.utils.torch_device import finite

if TYPE_CHECKING:
    from tessera.common.protocol.parts import Record

GRADIENTS, COUNTED = "gradients/", "counts/"
"""Prefixes of the tables that are added up, by what they are of an update."""
MOST = 2.0**24
"""The largest weight, figure or count of one device: they are right to 2^-22 in a group of 64."""


class MaskedPart(Part[tuple[MaskedUpload, ...]]):
    """Masked uploads, side by side: only the group they belong to can add them up."""

    name = "masked"

    def zero(self) -> tuple[MaskedUpload, ...]:
        """None."""
        return ()

    def add(self, left: tuple[MaskedUpload, ...], right: tuple[MaskedUpload, ...]) -> tuple[MaskedUpload, ...]:
        """Put them side by side, in an order of their own."""
        return tuple(sorted(left + right, key=lambda one: (one.ask, one.sender, one.words)))

    def check(self, value: tuple[MaskedUpload, ...]) -> None:
        """Nothing can be told of what is masked."""

    def write(self, value: tuple[MaskedUpload, ...]) -> dict[str, Record]:
        """One record of arrays of bytes."""
        written = {str(at): torch.frombuffer(bytearray(one.write()), dtype=torch.uint8) for at, one in enumerate(value)}
        return {"": to_record(written)}

    def read(self, records: Mapping[str, Record]) -> tuple[MaskedUpload, ...]:
        """Undo `write`. Raises `RunError` for anything else."""
        return tuple(_upload(tensor) for tensor in from_record(arrays(records)).values())


MASKED = MaskedPart()


def _upload(tensor: Tensor) -> MaskedUpload:
    if tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise RunError("a masked upload came as something else than bytes")
    return MaskedUpload.read(tensor.numpy().tobytes())


@dataclass(frozen=True)
class Terms:
    """What the masks of an ask are bound to beside roster and ask: the task's bytes, and the hash of what it works on; and
    what short tables are turned by."""

    task: bytes
    tensors: bytes
    layout: Layout
    figures: tuple[str, ...]
    salt: int


def terms(task: Task, shared: str, inputs: Tensors) -> Terms:
    """What server and devices must agree on for one thing that is asked, so that the masks of its answers cancel.

    Args:
        task: One of `Task.asks`.
        shared: Hash of the tensors that all devices are sent alike.
        inputs: The tensors that came with the task's message.
    """
    assert task.masking
    said = header_of(replace(task, tensors=""))  # which may differ from device to device: `shared` stands in its place
    figures = figure_names(task.kind, task.settings, inputs.keys(), task.views)
    scalars = [Spec("weight", (), "scalar", MOST), Spec("sums", (len(figures),), "scalar", MOST)]
    tables = () if task.kind in RIDERS else task.masking.tables
    worked_on = hashlib.sha256(f"{shared} {content_hash(inputs)}".encode()).digest()
    salt = rotation(task.settings.seed, task.round)
    return Terms(json.dumps(said, sort_keys=True).encode(), worked_on, [*tables, *scalars], figures, salt)


def to_values(update: Update, terms: Terms) -> dict[str, Tensor]:
    """What is masked of an update, by the names of the layout; what it does not hold is 0.

    An update that is not finite is nobody's, and counts its people as such. Gradients above the layout's bounds are scaled
    down as a whole, which is counted too. Raises `SecureSumError` for what the layout has no place for.
    """
    update = _finite(update)
    there = {f"{GRADIENTS}{name}": value for name, value in update.gradients.items()}
    there |= {f"{COUNTED}{name}": value for name, value in update.counts.items()}
    tables = [spec for spec in terms.layout if spec.kind != "scalar" or spec.name.startswith(COUNTED)]
    strange = [*there.keys() - {spec.name for spec in tables}, *update.sums.values.keys() - set(terms.figures)]
    if strange:
        raise SecureSumError(f"{min(strange)}: a secure sum has no place for it; the other side is of another version")
    there = {spec.name: there.get(spec.name, torch.zeros(spec.shape)).detach().cpu() for spec in tables}
    turned = {spec.name: linear.rotated(there[spec.name], terms.salt, spec.name) for spec in tables if spec.is_short}
    values = {name: value.double() for name, value in {**there, **turned}.items()}
    sums, learnt = dict(update.sums.values), [spec for spec in tables if spec.name.startswith(GRADIENTS) and spec.size]
    if (largest := max((float(values[spec.name].abs().max()) / spec.bound for spec in learnt), default=0.0)) > 1:
        values = {name: value / (largest * (1 + 1e-9)) for name, value in values.items()}
        sums[SCALED] = 1.0
    values["weight"] = torch.tensor(update.weight, dtype=torch.float64)
    values["sums"] = torch.tensor([sums.get(name, 0.0) for name in terms.figures], dtype=torch.float64)
    return values


def of_values(values: Mapping[str, Tensor], terms: Terms) -> Update:
    """The sum of many updates, from that of their `to_values`."""
    short = [spec.name for spec in terms.layout if spec.is_short]
    values = {**values, **{name: linear.turned_back(values[name], terms.salt, name) for name in short}}
    gradients = {
        name.removeprefix(GRADIENTS): value.float() for name, value in values.items() if name.startswith(GRADIENTS)
    }
    counts = {name.removeprefix(COUNTED): value.float() for name, value in values.items() if name.startswith(COUNTED)}
    sums = dict(zip(terms.figures, values["sums"].tolist(), strict=True))
    weight = float(values["weight"])
    return Update(gradients if weight else {}, weight, MetricSums(sums), counts)


def _finite(update: Update) -> Update:
    """The update, or one that only says how many people's is not finite."""
    tensors = [*update.gradients.values(), *update.counts.values()]
    if all(map(math.isfinite, update.sums.values.values())) and all(map(finite, tensors)):
        return update
    lost = max(update.sums[NONFINITE], 1.0) if math.isfinite(update.sums[NONFINITE]) else 1.0
    kept = {name: value for name, value in update.sums.values.items() if name != LOSS and math.isfinite(value)}
    return replace(update, gradients={}, counts={}, weight=0.0, sums=MetricSums(kept | {NONFINITE: lost}))


def tables(prefix: str, shapes: Mapping[str, Sequence[int]], bounds: Mapping[str, float]) -> tuple[Spec, ...]:
    """The tables of a task's answers: counts are whole numbers and stay exact, all else is of 32 bits."""
    return tuple(
        Spec(f"{prefix}{name}", tuple(shape), "table" if name in bounds else "scalar", bounds.get(name, MOST))
        for name, shape in shapes.items()
    )
