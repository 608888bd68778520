"""What goes along with a round's training: the evaluation of the round before."""

from pathlib import Path

import pytest
import torch
from flwr.app import Error, Message, MetricRecord

from tessera.client.recommend import Personal
from tessera.common.metrics.records import Record
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import CLIENT_APP_FAILED
from tests.deploy.test_executors import assert_bitwise, last_checkpoint, silent
from tests.deploy.test_round_policy import carry_out, evaluated, rounds, task_of
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics


def asked_of(question: Message) -> list[tuple[str, int]]:
    """What a message asks, in order: each kind, and the round it is of."""
    return [(task.kind, task.round) for task in task_of(question).asks()]


def test_a_round_of_all_nodes_is_one_message_and_takes_along_what_is_due(tmp_path: Path) -> None:
    """The figures are those of a run that asks for everything apart, as one does that draws its nodes, here all of them."""
    asked: dict[str, list[list[tuple[str, int]]]] = {"together": [], "apart": []}
    for name, federation in (("together", {}), ("apart", {"clients_per_round": 2})):
        job = small_job(tmp_path, name, 2, rounds=5, federation=federation)

        def listen(question: Message, reply: Message, name: str = name) -> list[Message]:
            if question.metadata.dst_node_id == 1:
                asked[name].append(asked_of(question))
            return [reply]

        carry_out(job, listen)
    trained = [("train", round) for round in range(1, 6)]
    assert asked["together"] == [
        [("item_statistics", 0)],
        [trained[0]],
        [trained[1]],
        [("evaluate", 2), trained[2]],
        [trained[3]],
        [("evaluate", 4), trained[4]],
        [("evaluate", 5)],
        [("baselines", 5)],
    ]
    assert [one for message in asked["together"] for one in message] == [one for (one,) in asked["apart"]]
    assert_bitwise(tmp_path / "apart", tmp_path / "together")
    mine, theirs = (read_metrics(tmp_path / name)[-1] for name in asked)
    assert {name: mine[name] for name in mine if name.startswith("bytes_")} == {
        name: pytest.approx(theirs[name]) for name in theirs if name.startswith("bytes_")
    }


def test_a_stale_round_that_is_known_late_throws_the_next_training_away(tmp_path: Path) -> None:
    """Everything that is learnt, reported and recommended is as if the evaluation had been asked apart."""
    changes = {"rounds": 40, "server": {"learning_rate": 0.3}, "evaluation": {"every": 1, "ks": (10,), "patience": 3}}
    jobs = [small_job(tmp_path, "together", 2, **changes)]
    jobs.append(small_job(tmp_path, "apart", 2, federation={"clients_per_round": 2}, **changes))
    for job in jobs:
        inline.execute(job, silent)
    told = [
        [(line["kind"], line["round"], line.get("loss"), line.get("scores")) for line in read_metrics(job.run_dir)[:-1]]
        for job in jobs
    ]
    assert told[0] == told[1]
    assert told[0][-1][1] < 40
    results = [read_metrics(job.run_dir)[-1] for job in jobs]
    assert results[0]["selected_round"] == results[0]["rounds"] - 3
    for name in ("rounds", "selected_round", "scores"):
        assert results[0][name] == results[1][name]
    for name, value in last_checkpoint(jobs[0].run_dir).items():
        torch.testing.assert_close(last_checkpoint(jobs[1].run_dir)[name], value, rtol=0, atol=0)
    shown = [[Personal.open(folder).recommend("person-0", 5) for folder in job.devices[:1]] for job in jobs]
    assert shown[0] == shown[1]


def test_a_node_that_fails_is_asked_again_what_went_along_and_not_to_train(tmp_path: Path) -> None:
    """So an evaluation is of everybody, however often nodes fail in training."""
    job, asked = small_job(tmp_path, "run", 3, evaluation={"every": 1}), list[list[tuple[str, int]]]()

    def reply(question: Message, honest: Message) -> list[Message]:
        fails = task_of(question).kind == "train" and task_of(question).round == 3
        if honest.metadata.src_node_id != 2 or task_of(question).round not in (2, 3):
            return [honest]
        asked.append(asked_of(question))
        return [Message(Error(CLIENT_APP_FAILED, "gone"), reply_to=question)] if fails else [honest]

    carry_out(job, reply)
    assert asked[1:3] == [[("evaluate", 2), ("train", 3)], [("evaluate", 2)]]
    assert [line["nodes"] for line in rounds(job)] == [3, 3, 2, 3]
    assert rounds(job)[2]["dropped"] == {"failed": 1}
    assert [evaluated(job, round)["scores"]["test/all/users"] for round in range(1, 5)] == [14] * 4


def test_what_is_due_stays_due_when_a_round_is_abandoned(tmp_path: Path) -> None:
    job, asked = small_job(tmp_path, "run", 3, federation={"min_nodes": 3}), list[list[tuple[str, int]]]()

    def reply(question: Message, honest: Message) -> list[Message]:
        if honest.metadata.src_node_id == 1:
            asked.append(asked_of(question))
        lost = honest.metadata.src_node_id == 2 and task_of(question).round in (2, 3) and asked[-1][-1] != ("train", 2)
        return [Message(Error(CLIENT_APP_FAILED, "gone"), reply_to=question)] if lost else [honest]

    carry_out(job, reply)
    assert [one for one in asked if ("evaluate", 2) in one] == [
        [("evaluate", 2), ("train", 3)],
        [("evaluate", 2), ("train", 4)],
    ]
    assert [line["kind"] for line in read_metrics(job.run_dir)][-6:] == [
        *("abandoned", "evaluation", "round", "evaluation", "baselines", "result"),
    ]
    assert evaluated(job, 2)["scores"]["test/all/users"] == 14


def test_an_answer_that_is_refused_costs_no_more_than_itself(tmp_path: Path) -> None:
    """A device whose evaluation fails has trained all the same, and the other way round."""
    job = small_job(tmp_path, "run", 3, evaluation={"every": 1})

    def reply(question: Message, honest: Message) -> list[Message]:
        round = task_of(question).round
        spoilt = {2: "evaluate/sums", 3: "sums"}.get(round) if task_of(question).kind == "train" else None
        if honest.metadata.src_node_id == 2 and spoilt:
            honest.content[spoilt] = MetricRecord({"users": -1.0})
        return [honest]

    carry_out(job, reply)
    assert [line["nodes"] for line in rounds(job)] == [3, 3, 2, 3]
    assert [evaluated(job, round)["nodes"] for round in range(1, 5)] == [2, 3, 3, 3]


@pytest.mark.parametrize("federation", [{}, {"clients_per_round": 2}], ids=["along", "apart"])
def test_a_run_stopped_before_an_evaluation_was_known_asks_for_it_again(tmp_path: Path, federation: dict) -> None:
    """Its newest checkpoint says that it is due. The run may go on with other nodes drawn than it began with."""

    def stop(line: Record) -> None:
        if line.kind == "round" and line.round == 3:
            raise KeyboardInterrupt

    inline.execute(small_job(tmp_path, "whole", 2), silent)
    with pytest.raises(KeyboardInterrupt):
        inline.execute(small_job(tmp_path, "run", 2), stop)
    job = small_job(tmp_path, "run", 2, resume=True, federation=federation)
    asked: list[list[tuple[str, int]]] = []

    def listen(question: Message, reply: Message) -> list[Message]:
        asked.append(asked_of(question))
        return [reply]

    carry_out(job, listen)
    due = [("evaluate", 2)] if federation else [("evaluate", 2), ("train", 3)]
    assert asked[:4] == [[("item_statistics", 2)]] * 2 + [due] * 2
    assert_bitwise(tmp_path / "whole", tmp_path / "run")
