"""Which updates a round takes: from whom, until when, and what it drops, counts and names."""

import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

from tessera.common.errors import RunError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.messages import BASIS, COUNTS, VIEWS, Task, unpack_task
from tessera.common.protocol.updates import Update, pack_update, unpack_update
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import CLIENT_APP_FAILED, InlineGrid
from tessera.deploy.job import Job
from tessera.server.app import serve
from tests.deploy.test_executors import SGD, assert_bitwise, last_checkpoint, silent
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics

Reply = Callable[[Message, Message], list[Message]]


def carry_out(job: Job, reply: Reply) -> None:
    """Run a job on an inline grid whose nodes' replies go through `reply(question, reply)`, which may give none, or several."""

    class Odd(InlineGrid):
        def pull_messages(self, message_ids):
            return [odd for honest in super().pull_messages(message_ids) for odd in reply(self.asked, honest)]

        def _handle(self, message: Message) -> Message:
            self.asked = message
            return super()._handle(message)

    grid = Odd(inline.device_app(job.devices[0].parent), len(job.devices))
    serve(grid, job.settings, job.catalogue, job.run_dir, job.resume)


def rounds(job: Job) -> list[dict]:
    return [line for line in read_metrics(job.run_dir) if line["kind"] == "round"]


def evaluated(job: Job, round: int) -> dict:
    """The line of a round's evaluation."""
    return next(line for line in read_metrics(job.run_dir) if (line["kind"], line["round"]) == ("evaluation", round))


def task_of(question: Message) -> Task:
    return unpack_task(question.content)[0]


def forging(node: int, forge: Callable[[Update], Update], kind: str = "train", round: int = 2) -> Reply:
    """Let one node return something else in one task."""

    def reply(question: Message, honest: Message) -> list[Message]:
        task = task_of(question)
        if (honest.metadata.src_node_id, task.kind, task.round) != (node, kind, round):
            return [honest]
        content = pack_update(forge(unpack_update(honest.content)))
        content["answers"] = honest.content["answers"]
        honest.content = content
        return [honest]

    return reply


def with_gradient(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Update], Update]:
    return lambda update: replace(update, gradients={**update.gradients, VIEWS: change(update.gradients[VIEWS])})


def poisoned(views: torch.Tensor) -> torch.Tensor:
    views = views.clone()
    views.view(-1)[3] = torch.nan
    return views


@pytest.mark.parametrize(
    ("kind", "said", "forge"),
    [
        ("nonfinite", "the gradient for 'views' is not finite", with_gradient(poisoned)),
        ("nonfinite", "its weight", lambda update: replace(update, weight=float("nan"))),
        ("malformed", "negative", lambda update: replace(update, weight=-4.0)),
        (
            "nonfinite",
            "of inf users",
            lambda update: replace(update, sums=MetricSums({"nonfinite": 1.0, "users": math.inf})),
        ),
        ("malformed", "a sum called 'a/users'", lambda update: replace(update, sums=MetricSums({"a/users": 1.0}))),
        ("malformed", "'counts' of shape (3,)", lambda update: replace(update, counts={COUNTS: torch.ones(3)})),
        ("malformed", "shape", with_gradient(lambda views: torch.zeros(3, 0, 8))),
        (
            "nonfinite",
            "the loss of 2 of",
            lambda update: replace(update, sums=update.sums + MetricSums({"nonfinite": 2.0})),
        ),
        ("malformed", "a gradient of shape", with_gradient(lambda views: views[:, :-1])),
        ("large", "norm above 50", with_gradient(lambda views: 1e6 * views)),
        ("exaggerated", "its weight is 1000, and its people", lambda update: replace(update, weight=1000.0)),
    ],
)
def test_what_is_unfit_is_dropped_counted_and_named_and_changes_nothing(
    tmp_path: Path, kind: str, said: str, forge: Callable[[Update], Update], caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on as if that node had been out of reach in that round."""
    federation = {"largest_gradient": 50.0}
    job = small_job(tmp_path, "forged", 3, federation=federation)
    with caplog.at_level(logging.WARNING):
        carry_out(job, forging(2, forge))
    assert [line["nodes"] for line in rounds(job)] == [3, 2, 3, 3]
    assert [line.get("dropped", {}) for line in rounds(job)] == [{}, {kind: 1}, {}, {}]
    (trouble,) = rounds(job)[1]["troubles"]
    assert trouble.startswith(f"node 2 returned something {kind}: ")
    assert said in trouble
    assert f"round 2, train: {trouble}" in caplog.text

    def unreachable(question: Message, honest: Message) -> list[Message]:
        task = task_of(question)
        lost = (honest.metadata.src_node_id, task.kind, task.round) == (2, "train", 2)
        return [Message(Error(CLIENT_APP_FAILED, "gone"), reply_to=question)] if lost else [honest]

    without = small_job(tmp_path, "without", 3, federation=federation)
    carry_out(without, unreachable)
    for name, value in last_checkpoint(without.run_dir).items():
        torch.testing.assert_close(last_checkpoint(job.run_dir)[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "said", "counts"),
    [
        (
            "item_statistics",
            r"node 1 returned something malformed: 'counts' of shape \(3,\)[^;]*",
            {COUNTS: torch.ones(3)},
        ),
        (
            "item_statistics",
            r"node 1 returned something malformed: 'counts' of shape \(40,\) and type torch.uint8",
            None,
        ),
        (
            "power",
            "node 1 returned something nonfinite: 'basis' is not finite",
            {BASIS: torch.full((40, 24), torch.nan)},
        ),
        (
            "power",
            "node 1 returned something exaggerated: a row of its power iteration is [0-9.e+]*, and its people[^;]*",
            {BASIS: torch.full((40, 24), 1e6)},
        ),
    ],
)
def test_vectors_that_are_none_of_those_asked_for_are_their_nodes_own_fault(
    tmp_path: Path, kind: str, said: str, counts: dict | None
) -> None:
    """All nodes must answer these, so the run ends; but it names who is to blame, not those that came after."""
    counts = counts or {COUNTS: torch.ones(40, dtype=torch.uint8)}
    job = small_job(tmp_path, "run", 3, views={"dim": 8, "id_dim": 8, "spectral_rounds": 2, "spectral_min_people": 1})
    with pytest.raises(RunError, match=f"2 nodes answered to {kind}, 3 must: {said}$"):
        carry_out(job, forging(1, lambda update: replace(update, counts=counts), kind, round=0))


def test_what_is_no_message_at_all_is_its_nodes_own_fault(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 3)

    def reply(question: Message, honest: Message) -> list[Message]:
        task, node = task_of(question), honest.metadata.src_node_id
        if (node, task.kind, task.round) == (2, "train", 2):
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "what Flower reads may not even be a record")
        if (node, task.kind, task.round) == (3, "train", 3):
            honest.content = RecordDict({"refusal": ConfigRecord({"reason": "\x1b[2J" + "long " * 1000})})
        if (node, task.kind, task.round) == (3, "train", 4):
            honest.content = RecordDict({"answers": honest.content["answers"]})
        return [honest]

    carry_out(job, reply)
    assert [line["nodes"] for line in rounds(job)] == [3, 2, 2, 2]
    assert [line.get("dropped") for line in rounds(job)[1:]] == [{"malformed": 1}, {"refused": 1}, {"malformed": 1}]
    assert rounds(job)[1]["troubles"] == ["node 2 sent what is no message"]
    (refused,) = rounds(job)[2]["troubles"]
    assert "\x1b" not in refused
    assert len(refused) < 400


def gone_from(round: int, node: int, *kinds: str) -> Reply:
    """Let one node fail in such tasks from a round on."""

    def reply(question: Message, honest: Message) -> list[Message]:
        task = task_of(question)
        fails = honest.metadata.src_node_id == node and task.round >= round and task.kind in kinds
        return [Message(Error(CLIENT_APP_FAILED, "gone"), reply_to=question)] if fails else [honest]

    return reply


def test_a_device_that_is_gone_for_good_does_not_end_the_search_for_the_best_round(tmp_path: Path) -> None:
    """After three evaluations without it, those that are left are everybody."""
    job = small_job(tmp_path, "run", 3, rounds=8, evaluation={"every": 1}, planted=True)
    carry_out(job, gone_from(3, 2, "train", "evaluate"))
    result = read_metrics(job.run_dir)[-1]
    assert result["selected_round"] >= 5
    left = evaluated(job, 8)["scores"]
    assert result["scores"]["test/all/users"] == left["test/all/users"]


def test_a_last_round_that_is_abandoned_is_evaluated_and_saved_all_the_same(tmp_path: Path) -> None:
    federation = {"min_nodes": 3, "checkpoint_every": 3}
    job = small_job(tmp_path, "run", 3, evaluation={"every": 4}, federation=federation)
    carry_out(job, gone_from(4, 2, "train"))
    assert [line["kind"] for line in read_metrics(job.run_dir)][-4:] == [
        "abandoned",
        "evaluation",
        "baselines",
        "result",
    ]
    assert read_metrics(job.run_dir)[-1]["selected_round"] == 4
    assert read_metrics(job.run_dir)[-1]["scores"]["test/all/users"] == 14
    assert (job.run_dir / "checkpoints" / "round-000004.safetensors").exists()


def test_nobody_being_there_for_a_while_abandons_no_round(tmp_path: Path) -> None:
    """As when the server's own network is cut, or all devices are restarted."""
    job, looks = small_job(tmp_path, "run", 2), list[int]()

    class Away(InlineGrid):
        def get_node_ids(self) -> list[int]:
            looks.append(1)
            return [] if 5 < len(looks) < 9 else super().get_node_ids()

    serve(Away(inline.device_app(job.devices[0].parent), 2), job.settings, job.catalogue, job.run_dir, resume=False)
    assert len(looks) > 9
    assert [line["nodes"] for line in rounds(job)] == [2] * 4


def test_useless_scores_of_one_node_do_not_stop_the_others(tmp_path: Path) -> None:
    """Nor does a round count as best that not everybody was evaluated in."""
    job = small_job(tmp_path, "run", 3)
    forge = lambda update: replace(update, sums=update.sums + MetricSums({"nonfinite": 1.0}))  # noqa: E731
    carry_out(job, forging(3, forge, "evaluate", 4))
    assert evaluated(job, 4)["dropped"] == {"nonfinite": 1}
    assert read_metrics(job.run_dir)[-1]["selected_round"] == 2


def test_what_ails_most_nodes_stops_the_run_and_says_what_to_do(tmp_path: Path) -> None:
    def reply(question: Message, honest: Message) -> list[Message]:
        node = honest.metadata.src_node_id
        bad = forging(node, lambda update: replace(update, sums=update.sums + MetricSums({"nonfinite": 1.0})))
        return bad(question, honest) if node != 1 else [honest]

    with pytest.raises(RunError, match=r"round 2: the loss of 2 of 14 users is not finite; lower the learning rates"):
        carry_out(small_job(tmp_path, "run", 3), reply)


def test_an_answer_to_another_round_or_run_is_refused(tmp_path: Path) -> None:
    """As a device would send that wakes up late, or one that plays an old update again."""
    for name, stale in (("round", {"round": 1}), ("run", {"run": "small-00000000"}), ("task", {"kind": "evaluate"})):

        def reply(question: Message, honest: Message, stale: dict = stale) -> list[Message]:
            task = task_of(question)
            if (honest.metadata.src_node_id, task.kind, task.round) == (2, "train", 2):
                honest.content["answers"] = ConfigRecord(dict(honest.content["answers"]) | stale)
            return [honest]

        job = small_job(tmp_path, name, 3)
        carry_out(job, reply)
        assert [line["nodes"] for line in rounds(job)] == [3, 2, 3, 3]
        assert rounds(job)[1]["dropped"] == {"stray": 1}
        assert "node 2 returned something stray: it answers another task" in rounds(job)[1]["troubles"][0]


def test_a_second_answer_counts_for_nothing(tmp_path: Path) -> None:
    inline.execute(small_job(tmp_path, "once", 3), silent)
    job = small_job(tmp_path, "twice", 3)
    carry_out(job, lambda question, honest: [honest, honest])
    assert_bitwise(tmp_path / "once", job.run_dir)
    assert all(line["nodes"] == 3 and line["dropped"]["stray"] >= 3 for line in rounds(job))


def test_a_round_is_closed_with_the_first_to_answer_of_more_than_it_needs(tmp_path: Path) -> None:
    """Two of six are needed, three are asked, others each round. Who was not waited for is not asked before it has answered."""
    federation = {"clients_per_round": 2, "over_selection": 0.5, "checkpoint_every": 4}
    asked: list[tuple[int, int]] = []

    def note(question: Message, honest: Message) -> list[Message]:
        if task_of(question).kind == "train":
            asked.append((task_of(question).round, question.metadata.dst_node_id))
        return [honest]

    runs = []
    for name in ("run", "again"):
        job = small_job(tmp_path, name, 6, federation=federation, rounds=8)
        carry_out(job, note)
        assert [line["nodes"] for line in rounds(job)] == [2] * 8
        assert [line["dropped"] for line in rounds(job)] == [{"late": 1}] * 8
        assert not any(line["troubles"] for line in rounds(job)), "whoever is not waited for is no trouble"
        assert Counter(round for round, _ in asked) == dict.fromkeys(range(1, 9), 3)
        assert len({node for _, node in asked}) == 6
        assert asked == sorted(asked, key=lambda one: one[0]), "a node works off its tasks in order"
        runs.append(list(asked))
        asked.clear()
    assert runs[0] == runs[1], "drawn by the seed"


def test_a_failing_node_is_made_up_for_by_a_spare_one(tmp_path: Path) -> None:
    federation = {"clients_per_round": 3, "over_selection": 0.4, "min_fraction": 1.0}
    job = small_job(tmp_path, "run", 6, federation=federation, server=SGD)

    def reply(question: Message, honest: Message) -> list[Message]:
        broken = task_of(question).kind == "train" and honest.metadata.src_node_id == 4
        return [Message(Error(CLIENT_APP_FAILED, "gone"), reply_to=question)] if broken else [honest]

    carry_out(job, reply)
    assert [line["nodes"] for line in rounds(job)] == [3] * 4
    assert sum(line.get("dropped", {}).get("failed", 0) for line in rounds(job)) >= 1


def test_a_round_with_less_than_the_minimum_fraction_is_abandoned(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 5, federation={"min_fraction": 0.7}, rounds=5)

    def reply(question: Message, honest: Message) -> list[Message]:
        task = task_of(question)
        gone = {2: (1, 2), 3: (5,)}.get(task.round, ()) if task.kind == "train" else ()
        fails = honest.metadata.src_node_id in gone
        return [Message(Error(CLIENT_APP_FAILED, "gone"), reply_to=question)] if fails else [honest]

    carry_out(job, reply)
    (line,) = [line for line in read_metrics(job.run_dir) if line["kind"] == "abandoned"]
    assert line["round"] == 2
    assert "3 nodes answered to train, 4 must: node 1 failed: gone; node 2 failed: gone" in line["reason"]
    assert [(line["round"], line["nodes"]) for line in rounds(job)] == [(1, 5), (3, 4), (4, 5), (5, 5)]


def test_slow_nodes_are_left_out_at_the_deadline_and_their_late_updates_dropped(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 3, federation={"timeout": 0.3})
    held: list[Message] = []

    def reply(question: Message, honest: Message) -> list[Message]:
        task = task_of(question)
        if (honest.metadata.src_node_id, task.kind, task.round) == (2, "train", 2):
            held.append(honest)
            return []
        return [honest, held.pop()] if held and task.round == 3 else [honest]

    carry_out(job, reply)
    assert [line["nodes"] for line in rounds(job)] == [3, 2, 3, 3]
    assert rounds(job)[1]["troubles"] == ["node 2 did not answer in 0.3 s"]
    assert rounds(job)[2]["dropped"] == {"stray": 1}


def test_a_question_to_all_is_asked_again_when_a_node_fails_once(tmp_path: Path) -> None:
    """So that a run does not end because a device was restarting while item statistics were taken."""
    inline.execute(small_job(tmp_path, "whole", 3), silent)
    job, failed = small_job(tmp_path, "run", 3), list[str]()

    def reply(question: Message, honest: Message) -> list[Message]:
        kind = task_of(question).kind
        if honest.metadata.src_node_id == 2 and kind in ("item_statistics", "baselines") and kind not in failed:
            failed.append(kind)
            return [Message(Error(CLIENT_APP_FAILED, "restarting"), reply_to=question)]
        return [honest]

    carry_out(job, reply)
    assert failed == ["item_statistics", "baselines"]
    assert read_metrics(job.run_dir)[0]["users"] == 14
    assert_bitwise(tmp_path / "whole", job.run_dir)
