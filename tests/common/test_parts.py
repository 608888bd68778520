"""The laws of the parts of an update: each adds up in any order, has a zero, and comes back from the wire."""

import math

import pytest
import torch
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from tessera.common.errors import NotFiniteError, RunError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.adapters import ADAPTERS, ClientAdapters
from tessera.common.protocol.parts import COUNTS_PART, EVERYBODYS, GRADIENTS_PART, SUMS_PART, WEIGHT_PART, Part
from tessera.common.protocol.tensors import content_hash
from tessera.common.protocol.updates import Update, pack_update, unpack_update
from tests.common.test_messages import exact_sums, exact_tensors
from tests.support.splits import tries

VALUES = {
    GRADIENTS_PART: exact_tensors(),
    COUNTS_PART: exact_tensors(),
    WEIGHT_PART: st.integers(0, 1000).map(float),
    SUMS_PART: exact_sums,
}
every_part = pytest.mark.parametrize("part", EVERYBODYS)


def same(part: Part, left: object, right: object) -> bool:
    return content_hash(left) == content_hash(right) if part in (GRADIENTS_PART, COUNTS_PART) else left == right  # type: ignore[arg-type]


@every_part
@tries(40)
@given(data=st.data())
def test_a_part_adds_up_in_any_order_and_comes_back_from_its_records(part: Part, data: st.DataObject) -> None:
    a, b, c = (data.draw(VALUES[part]) for _ in range(3))
    assert same(part, part.add(a, b), part.add(b, a))
    assert same(part, part.add(part.add(a, b), c), part.add(a, part.add(b, c)))
    assert same(part, part.add(part.zero(), a), a)
    assert same(part, part.read(part.write(a)), a)
    part.check(a)


@pytest.mark.parametrize(
    ("part", "bad"),
    [
        (GRADIENTS_PART, {"views": torch.tensor([1.0, torch.nan])}),
        (COUNTS_PART, {"counts": torch.tensor([torch.inf])}),
        (WEIGHT_PART, math.nan),
        (SUMS_PART, MetricSums({"loss": math.inf})),
    ],
)
def test_what_is_not_finite_is_not_added(part: Part, bad: object) -> None:
    with pytest.raises(NotFiniteError):
        part.check(bad)


def test_a_strategys_part_is_read_where_it_is_taken_and_refused_elsewhere() -> None:
    content = pack_update(Update(weight=1.0).put(ADAPTERS, ClientAdapters({"0123456789abcdef": "tiny"})))
    assert unpack_update(content, [ADAPTERS]).clients() == ["0123456789abcdef"]
    with pytest.raises(RunError, match=r"'adapters\.modules', which nobody asked for"):
        unpack_update(content)


@every_part
def test_a_part_that_is_missing_or_another_kind_of_record_is_refused(part: Part) -> None:
    content = pack_update(Update())
    content[part.name] = ConfigRecord({"value": 1})
    with pytest.raises(RunError, match="it came without"):
        unpack_update(content)
    del content[part.name]
    with pytest.raises(RunError, match="it came without"):
        unpack_update(content)
