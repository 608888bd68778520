"""Runs whose views and gradients travel in fewer bits: nearly the same results, and no harm from what does not fit."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message

from tessera.client.recommend import Personal
from tessera.deploy.executors import inline
from tests.deploy.test_executors import assert_bitwise, silent
from tests.deploy.test_round_policy import carry_out, rounds, task_of
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics

PLAIN = {"views": "float32", "gradients": "float32"}


def test_runs_in_fewer_bits_learn_the_same(tmp_path: Path) -> None:
    wires = {
        "plain": PLAIN,
        "half": {"views": "bfloat16", "gradients": "int8"},
        "few": {"views": "4%", "gradients": "1%"},
    }
    found = {}
    for name, wire in wires.items():
        job = small_job(tmp_path, name, 2, wire=wire, views={"dim": 64, "id_dim": 8}, rounds=3, planted=True)
        inline.execute(job, silent)
        found[name] = rounds(job)
        personal = Personal.open(job.devices[0])
        assert len(personal.recommend(personal.people()[0][0].users[0], 5)[0]) == 5
    for name, share in (("half", 0.55), ("few", 0.25)):
        short, plain = found[name][-1], found["plain"][-1]
        assert short["loss"] == pytest.approx(plain["loss"], rel=0.01)
        assert short["loss"] < found[name][0]["loss"]
        for way in ("down", "up"):
            assert short[f"bytes_{way}_per_user"] < share * plain[f"bytes_{way}_per_user"]


def test_a_resumed_run_in_few_bits_equals_the_whole_one_bit_for_bit(tmp_path: Path) -> None:
    wire = {"views": "4%", "gradients": "4%"}
    inline.execute(small_job(tmp_path, "whole", 2, rounds=4, wire=wire), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=2, wire=wire), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=4, wire=wire, resume=True), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "parts")


def test_a_node_sends_rows_of_its_peoples_items_only(tmp_path: Path) -> None:
    """With sampled negatives most items of a large catalogue are zero: what travels is less, and loses nothing."""
    local = {"backbone": "fedavg", "loss": {"name": "bce", "negatives": 1}}
    items: list[int] = []

    def listen(question: Message, reply: Message) -> list[Message]:
        if task_of(question).kind == "train":
            gradients = reply.content.array_records["gradients"]
            items.append(len(gradients["views/items"].numpy()))
            assert gradients["views"].numpy().shape[1] == items[-1]
        return [reply]

    job = small_job(tmp_path, "run", 7, local=local, wire=PLAIN, rounds=2)
    carry_out(job, listen)
    assert 0 < max(items) < 40
    result = read_metrics(job.run_dir)[-1]
    assert result["bytes_up_per_user"] < result["bytes_down_per_user"]


LIES = {
    "a shape beyond memory": np.zeros(0, dtype=np.float32),
    "letters": np.array(["a"]),
    "items beyond the catalogue": np.array([3, 10**6], dtype=np.int32),
}


@pytest.mark.parametrize("lie", LIES)
def test_parts_that_lie_are_dropped_and_named_and_the_round_goes_on(tmp_path: Path, lie: str) -> None:
    array = Array(LIES[lie])
    if lie == "a shape beyond memory":
        array.data = array.data.replace(b"(0,), } ", f"({10**12},), }}".encode())[: len(array.data)]

    def spoil(question: Message, reply: Message) -> list[Message]:
        task = task_of(question)
        if (task.kind, task.round, reply.metadata.src_node_id) == ("train", 2, 1):
            arrays = dict(reply.content.array_records["gradients"])
            reply.content["gradients"] = ArrayRecord(arrays | {"views/items": array})
        return [reply]

    job = small_job(tmp_path, "run", 3, wire={"views": "4%", "gradients": "4%"}, rounds=3)
    carry_out(job, spoil)
    assert [line.get("dropped") for line in rounds(job)] == [None, {"malformed": 1}, None]
    assert "node 1" in rounds(job)[1]["troubles"][0]
    assert "'views" in rounds(job)[1]["troubles"][0]


@pytest.mark.parametrize("explained", [0.6, 0.999999])
def test_a_run_along_few_directions_learns_the_same_and_resumes_bit_for_bit(tmp_path: Path, explained: float) -> None:
    """Four views: as few directions as say enough travel, and the checkpoint knows which."""
    wire = {"views": "float32", "gradients": "float32", "explained": explained}
    many = {"local": {"backbone": "history", "learning_rate": 0.3}, "planted": True}
    inline.execute(small_job(tmp_path, "all", 2, rounds=4, wire=PLAIN, **many), silent)
    inline.execute(small_job(tmp_path, "whole", 2, rounds=4, wire=wire, **many), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=2, wire=wire, **many), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=4, wire=wire, resume=True, **many), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "parts")
    few, every = (rounds(small_job(tmp_path, name, 2, **many, resume=True)) for name in ("whole", "all"))
    assert [line["loss"] for line in few] == pytest.approx([line["loss"] for line in every], rel=1e-3)
    assert few[0]["bytes_up_per_user"] < 0.6 * every[0]["bytes_up_per_user"]
    assert (few[-1]["bytes_up_per_user"] < every[-1]["bytes_up_per_user"]) == (explained < 0.9)


def test_a_hostile_sketch_of_another_shape_is_dropped(tmp_path: Path) -> None:
    def spoil(question: Message, reply: Message) -> list[Message]:
        task = task_of(question)
        if (task.kind, reply.metadata.src_node_id) == ("train", 1):
            arrays = dict(reply.content.array_records["gradients"])
            wrong = Array(np.ones((2, 2), dtype=np.float32))
            reply.content["gradients"] = ArrayRecord(arrays | {"views/sketch": wrong})
        return [reply]

    job = small_job(tmp_path, "run", 3, wire={"explained": 0.9}, rounds=2)
    carry_out(job, spoil)
    assert [line.get("dropped") for line in rounds(job)] == [{"malformed": 1}] * 2
    assert "'views/sketch'" in rounds(job)[0]["troubles"][0]
