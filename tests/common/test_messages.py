"""What travels: the same after the wire, additive, and named by its content."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictBytes
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st

from tessera.client import cohort
from tessera.client.histories import histories
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import NAME
from tessera.common.errors import DataError, RunError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.messages import (
    Ask,
    Broadcast,
    Task,
    join_answers,
    pack_task,
    refusal,
    split_answers,
    unpack_task,
)
from tessera.common.protocol.tensors import Tensors, add, array_bytes, content_hash
from tessera.common.protocol.updates import Update, check_gradients, pack_update, unpack_update
from tests.support.splits import ragged, settings, split_of, tries

NAMES = ("views", "history", "content/image")
TYPES = (torch.float32, torch.float16, torch.int64, torch.uint8)
SHAPES: dict[str, tuple[int, ...]] = {"views": (2, 3, 2), "history": (3, 2), "content/image": (3,)}


@st.composite
def any_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Up to three tensors of any shape, empty ones too."""
    found = {}
    for name in draw(st.sets(st.sampled_from(NAMES))):
        shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
        values = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
        found[name] = values.to(draw(st.sampled_from(TYPES)))
    return found


@st.composite
def exact_tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Tensors of fixed shapes with whole numbers, whose sums float32 holds exactly in any order."""
    draws = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    names = sorted(draw(st.sets(st.sampled_from(NAMES))))
    return {name: torch.randint(-1000, 1000, SHAPES[name], generator=draws).float() for name in names}


exact_sums = st.builds(MetricSums, st.dictionaries(st.sampled_from(["users", "loss"]), st.integers(0, 1000).map(float)))
updates = st.builds(Update, exact_tensors(), st.integers(0, 1000).map(float), exact_sums, exact_tensors())
tasks = st.builds(
    Task,
    st.sampled_from(["item_statistics", "train", "evaluate", "baselines"]),
    st.from_regex(NAME, fullmatch=True),
    st.integers(0, 10**6),
    st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    st.lists(st.sampled_from(["sum", "image", "id"]), max_size=3).map(tuple),
    st.text(alphabet="0123456789abcdef", max_size=64),
    st.floats(1e-9, 9).map(lambda rate: DeviceSettings.of(settings(local={"learning_rate": rate}))),
    st.just("") | st.text(alphabet="0123456789abcdef", min_size=64, max_size=64),
    also=st.sampled_from([(), (Ask("baselines", 0),)]),
).map(lambda task: replace(task, also=() if task.kind == "baselines" else task.also))  # fmt: skip


def untouched(content: RecordDict) -> RecordDict:
    return content


def through_protobuf(content: RecordDict) -> RecordDict:
    """Flower's protobuf form, to bytes and back."""
    return recorddict_from_proto(RecordDictBytes.FromString(recorddict_to_proto(content).SerializeToString()))


def through_objects(content: RecordDict) -> RecordDict:
    """The form Flower's gRPC connections carry: a tree of objects, each deflated to bytes."""
    pieces = {name: piece.deflate() for name, piece in get_all_nested_objects(content).items()}
    return cast(RecordDict, inflate_object_from_contents(content.object_id, pieces))


WIRES = pytest.mark.parametrize("wire", [untouched, through_protobuf, through_objects])


def assert_same(left: Tensors, right: Tensors) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert (value.dtype, value.shape) == (right[name].dtype, right[name].shape)
        assert torch.equal(value, right[name])


def assert_equal(left: Update, right: Update) -> None:
    assert_same(left.gradients, right.gradients)
    assert_same(left.counts, right.counts)
    assert (left.weight, left.sums) == (right.weight, right.sums)


@WIRES
@tries(40)
@given(task=tasks, tensors=st.none() | any_tensors(), inputs=any_tensors())
def test_a_task_arrives_as_it_was_sent(wire, task, tensors, inputs) -> None:  # type: ignore[no-untyped-def]
    arrived, brought, known = unpack_task(wire(pack_task(task, tensors, inputs)))
    assert arrived == task
    assert_same(known, inputs)
    assert (brought is None) == (tensors is None)
    if tensors is not None:
        assert brought is not None
        assert_same(brought, tensors)
        assert content_hash(brought) == content_hash(tensors), "the device names what it holds as the server does"


@WIRES
@tries(40)
@given(gradients=any_tensors(), counts=any_tensors(), weight=st.floats(0, 1e9), loss=st.floats(allow_nan=False))
def test_an_update_arrives_as_it_was_sent(wire, gradients, counts, weight, loss) -> None:  # type: ignore[no-untyped-def]
    update = Update(gradients, weight, MetricSums({"loss": loss, "test/all/hr@10": weight / 3}), counts)
    assert_equal(unpack_update(wire(pack_update(update))), update)


@pytest.mark.parametrize(("run", "tensors"), [("../escaped", ""), ("run", "../planted"), ("", ""), ("run", "abc")])
def test_what_cannot_be_the_name_of_a_file_is_refused(run: str, tensors: str) -> None:
    with pytest.raises(DataError, match="no server of ours"):
        unpack_task(pack_task(Task("train", run, 1, (0,), ("id",), "c0", DeviceSettings.of(settings()), tensors)))


@pytest.mark.parametrize("also", [("train",), ("evaluate", "evaluate"), ("select",)])
def test_a_device_does_along_only_what_changes_nothing_on_it_and_once(also: tuple[Any, ...]) -> None:
    task = Task(
        "train", "run", 2, (0,), ("id",), "c0", DeviceSettings.of(settings()), also=tuple(Ask(one, 1) for one in also)
    )
    with pytest.raises(DataError, match="asks for things together"):
        unpack_task(pack_task(task))


@WIRES
@tries(20)
@given(first=updates, second=updates)
def test_answers_to_what_was_asked_together_are_told_apart(wire, first, second) -> None:  # type: ignore[no-untyped-def]
    task = Task("train", "run", 2, (0,), ("id",), "c0", DeviceSettings.of(settings()), also=(Ask("evaluate", 1),))
    answers = {"evaluate": pack_update(first), "train": pack_update(second)}
    arrived = split_answers(task, wire(join_answers(task, answers)))
    assert list(arrived) == ["evaluate", "train"]
    for kind, update in (("evaluate", first), ("train", second)):
        assert_equal(unpack_update(arrived[kind]), update)


def test_who_refuses_a_whole_message_refuses_all_that_it_asks() -> None:
    task = Task("train", "run", 2, (0,), ("id",), "c0", DeviceSettings.of(settings()), also=(Ask("evaluate", 1),))
    refused = split_answers(task, refusal("no"))
    assert [dict(refused[kind]["refusal"]) for kind in ("evaluate", "train")] == [{"reason": "no"}] * 2
    part = split_answers(task, join_answers(task, {"evaluate": pack_update(Update()), "train": refusal("no")}))
    assert "refusal" not in part["evaluate"]


@WIRES
def test_a_single_number_keeps_its_shape(wire) -> None:  # type: ignore[no-untyped-def]
    """A shared bias of shape () must not come back as [1]: the server compares shapes with what it sent."""
    arrived = unpack_update(wire(pack_update(Update({"bias": torch.tensor(2.5)}))))
    assert_same(arrived.gradients, {"bias": torch.tensor(2.5)})


@WIRES
def test_what_arrives_can_be_written_to(wire) -> None:  # type: ignore[no-untyped-def]
    """The server adds to what it got, and a message may be read again."""
    content = wire(pack_update(Update({"views": torch.ones(2, 2)})))
    unpack_update(content).gradients["views"].add_(1)
    assert float(unpack_update(content).gradients["views"].sum()) == 4


@tries(60)
@given(updates, updates, updates)
def test_updates_add_in_any_order(a: Update, b: Update, c: Update) -> None:
    assert_equal(a + b, b + a)
    assert_equal((a + b) + c, a + (b + c))
    assert_equal(a + Update(), a)
    assert_equal(Update() + a, a)


@tries(60)
@given(updates, updates)
def test_adding_leaves_the_parts_as_they_were(a: Update, b: Update) -> None:
    before = content_hash(a.gradients), content_hash(b.gradients)
    total = a + b
    for name in total.gradients:
        absent = torch.zeros(SHAPES[name])
        assert torch.equal(total.gradients[name], a.gradients.get(name, absent) + b.gradients.get(name, absent))
    assert (content_hash(a.gradients), content_hash(b.gradients)) == before


@pytest.mark.parametrize("backbone", ["fedavg", "history"])
def test_two_devices_added_up_are_one_device_with_all_users(backbone: str) -> None:
    local = settings(local={"backbone": backbone, "loss": "bce", "weighting": "examples", "local_epochs": 2}).local
    split = split_of(ragged(1, [3, 7, 1, 5, 9], 30), 30)
    draw = torch.Generator().manual_seed(0)
    sent = {
        name: torch.randn(shape, generator=draw) for name, shape in {"views": (3, 30, 4), "history": (30, 4)}.items()
    }

    def update(rows: list[int]) -> Update:
        part = split.take(torch.tensor(rows).numpy())
        state = cohort.start_state(part.users, local, sent["views"], seed=5)
        return cohort.train(state, sent, histories(part), local, seed=5, round=3)[1]

    together, apart = update([0, 1, 2, 3, 4]), update([4, 1]) + update([0, 2, 3])
    assert apart.weight == together.weight
    assert apart.sums.values == pytest.approx(together.sums.values, rel=1e-6)
    for name, value in together.gradients.items():
        torch.testing.assert_close(apart.gradients[name], value, rtol=1e-5, atol=1e-6)


def test_devices_with_another_model_are_named() -> None:
    with pytest.raises(RunError, match=r"'views' has shape \(3, 2\) from one device, \(2, 2\) from another"):
        add({"views": torch.ones(2, 2)}, {"views": torch.ones(3, 2)})
    with pytest.raises(RunError, match="'history'"):
        _ = Update({"history": torch.ones(1)}) + Update({"history": torch.ones(1, 1)})


def test_a_gradient_of_what_was_not_sent_is_refused() -> None:
    sent = Broadcast({"views": torch.ones(2, 2)}, fixed={"module/pq": torch.ones(1)}).tensors
    check_gradients(Update({"views": torch.ones(2, 2)}, weight=1.0), sent)
    with pytest.raises(RunError, match="'junk', which was not sent"):
        check_gradients(Update({"views": torch.ones(2, 2), "junk": torch.ones(9)}, weight=1.0), sent)


def test_the_hash_names_the_content() -> None:
    base = {"views": torch.arange(6.0).view(2, 3), "history": torch.zeros(3)}
    changed = [
        base | {"views": base["views"] + torch.eye(2, 3) * 1e-3},
        base | {"views": base["views"].view(3, 2)},
        base | {"views": base["views"].view(torch.int32)},
        base | {"history": torch.zeros(3, dtype=torch.int32)},
        base | {"history": torch.zeros(4)},
        {"views": base["views"]},
        {"view": base["views"], "history": base["history"]},
        {"history": base["views"], "views": base["history"]},
        {},
    ]
    assert len({content_hash(tensors) for tensors in [base, *changed]}) == 1 + len(changed)


def test_the_hash_sees_neither_order_nor_memory() -> None:
    base = {"views": torch.arange(6.0).view(2, 3), "history": torch.zeros(3)}
    strided = torch.arange(6.0).view(2, 3).T.contiguous().T
    other = {"history": torch.zeros(3, requires_grad=True), "views": strided}
    assert content_hash(other) == content_hash(base)


def test_bytes_are_those_of_the_tensors() -> None:
    task = Task("train", "run", 1, (0,), ("id",), "c0", DeviceSettings.of(settings()))
    tensors = {"views": torch.zeros(4, 100, 16, dtype=torch.float16), "history": torch.zeros(100, 16)}
    inputs = {"counts": torch.zeros(1000)}
    assert array_bytes(pack_task(task)) == 0
    raw = 4 * 100 * 16 * 2 + 100 * 16 * 4
    for content, least, n_arrays in (
        (pack_task(task, tensors), raw, 2),
        (pack_task(task, tensors, inputs), raw + 4000, 3),
        (pack_task(task, None, inputs), 4000, 1),
        (pack_update(Update(tensors, counts=inputs)), raw + 4000, 3),
    ):
        assert least <= array_bytes(content) <= least + 256 * n_arrays
