"""The baselines beside a run's row are of the same people, whoever comes, leaves or misses a question; or it is said."""

from pathlib import Path

import pytest
from flwr.app import Error, Message
from rich.console import Console

from tessera.common.metrics.names import HR, TEST, MetricName
from tessera.common.metrics.records import ResultRecord, read_result
from tessera.deploy.api.display import show_result, summary
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import CLIENT_APP_FAILED, InlineGrid
from tessera.deploy.job import Job
from tessera.server.app import serve
from tests.deploy import test_secure_runs
from tests.deploy.test_executors import kill_after, silent
from tests.deploy.test_round_policy import Reply, carry_out, task_of
from tests.deploy.test_secure_runs import SECURE, losing
from tests.support.catalogues import small_job

CHANCE = MetricName(TEST, "all", HR, 10, baseline="random")


def failing(node: int, *kinds: str, rounds: range = range(100)) -> Reply:
    """A node that fails in these tasks."""

    def reply(question: Message, honest: Message) -> list[Message]:
        task = task_of(question)
        lost = honest.metadata.src_node_id == node and task.round in rounds and set(kinds) & {task.kind}
        return [Message(Error(CLIENT_APP_FAILED, "gone"), reply_to=question)] if lost else [honest]

    return reply


def shown(job: Job, result: ResultRecord) -> str:
    """What a person reads at the end of a run."""
    console = Console(width=200, record=True, quiet=False)
    with console.capture() as capture:
        show_result(console, result, job.settings, job.run_dir)
    return capture.get()


def people(result: ResultRecord) -> tuple[float, float]:
    """How many people's targets the run's row is of, and the baselines."""
    return result.scores[CHANCE.of("").users], result.baselines[CHANCE.users]


def test_the_table_of_a_quiet_run_needs_no_remark(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 3)
    inline.execute(job, silent)
    result = read_result(job.run_dir)
    assert result.compared
    assert (result.compared.people, result.compared.nodes, result.compared.same) == (14, 3, True)
    assert summary(result)["compared"]["same"]
    assert people(result) == (14, 14)
    assert "same people" not in shown(job, result)


def test_who_was_not_there_for_the_selected_round_is_in_no_baseline(tmp_path: Path) -> None:
    """A node that fails in every evaluation of a round is gone from the row, and the baselines, though it is there by then."""
    job = small_job(tmp_path, "run", 3, rounds=2, evaluation={"every": 2})
    carry_out(job, failing(2, "evaluate"))
    result = read_result(job.run_dir)
    assert result.compared
    assert result.compared.same
    assert people(result) == (result.compared.people,) * 2
    assert result.compared.people < 14


@pytest.mark.parametrize("federation", [{}, {"clients_per_round": 3}], ids=["all", "drawn"])
def test_a_node_that_misses_the_baselines_is_said(tmp_path: Path, federation: dict) -> None:
    job = small_job(tmp_path, "run", 3, federation=federation)
    carry_out(job, failing(2, "baselines"))
    result = read_result(job.run_dir)
    assert result.compared
    assert (result.compared.nodes, result.compared.baselines_nodes, result.compared.same) == (3, 2, False)
    few, all_people = result.compared.baselines_people, result.compared.people
    assert people(result) == (all_people, few)
    told = f"the run's row is of {all_people:.0f} people on 3 nodes, the baselines are of {few:.0f} people on 2 nodes"
    assert told in shown(job, result)
    assert summary(result)["compared"]["same"] is False


def test_one_node_in_anothers_place_is_not_the_same_though_numbers_are(tmp_path: Path) -> None:
    """Of seven nodes with two people each one is away for the evaluation, and another one for the baselines."""
    job = small_job(tmp_path, "run", 7, rounds=1, federation={"min_nodes": 6})

    class Fickle(InlineGrid):
        kind = ""

        def get_node_ids(self) -> list[int]:
            away = {"train": 2, "evaluate": 3}.get(self.kind)
            return [node for node in self.nodes if node != away]

        def _handle(self, message: Message) -> Message:
            self.kind = task_of(message).kind
            return super()._handle(message)

    grid = Fickle(inline.device_app(job.devices[0].parent), 7)
    serve(grid, job.settings, job.catalogue, job.run_dir, resume=False)
    result = read_result(job.run_dir)
    assert result.compared
    assert people(result) == (12, 12)
    assert (result.compared.nodes, result.compared.baselines_nodes, result.compared.same) == (6, 6, False)
    assert "not of the same people" in shown(job, result)


def test_nobody_answers_to_the_baselines_and_the_run_completes(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 2)

    def reply(question: Message, honest: Message) -> list[Message]:
        return failing(honest.metadata.src_node_id, "baselines")(question, honest)

    carry_out(job, reply)
    result = read_result(job.run_dir)
    assert result.baselines == {}
    assert "no baselines: no device answered to them" in shown(job, result)


def test_under_masks_too(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 5, privacy=SECURE)
    test_secure_runs.carry_out(job, losing(lambda stage, node, group: stage == "baselines" and node == 2))
    result = read_result(job.run_dir)
    assert result.compared
    assert (result.compared.nodes, result.compared.baselines_nodes, result.compared.same) == (5, 4, False)
    assert people(result) == (result.compared.people, result.compared.baselines_people)

    job = small_job(tmp_path, "whole", 5, privacy=SECURE)
    inline.execute(job, silent)
    result = read_result(job.run_dir)
    assert result.compared
    assert result.compared.same
    assert result.uncounted is None


def test_nodes_that_come_and_go_are_in_row_and_baselines_alike(tmp_path: Path) -> None:
    """Node 4 comes in round 2 and node 1 leaves in round 4: the row is of those who stay, and so are the baselines."""
    job, now = small_job(tmp_path, "run", 4, rounds=9, federation={"nodes": 4}, evaluation={"every": 1}), [0]

    class Lively(InlineGrid):
        def get_node_ids(self) -> list[int]:
            return [node for node in self.nodes if not (node == 1 and now[0] > 3)]

        def _handle(self, message: Message) -> Message:
            now[0] = task_of(message).round
            return super()._handle(message)

    grid = Lively(inline.device_app(job.devices[0].parent), 4)
    serve(grid, job.settings, job.catalogue, job.run_dir, resume=False)
    result = read_result(job.run_dir)
    assert result.compared
    assert (result.compared.nodes, result.compared.same) == (3, True)
    assert people(result) == (result.compared.people,) * 2
    assert result.compared.people < 14


def test_a_resumed_run_compares_how_many(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 2)
    kill_after(job, n_rounds=3)
    inline.execute(small_job(tmp_path, "run", 2, resume=True), silent)
    result = read_result(job.run_dir)
    assert result.compared
    assert result.compared.same


def test_why_warm_and_cold_are_not_told_apart_is_said(tmp_path: Path) -> None:
    job = small_job(tmp_path, "alone", 14, rounds=1)
    inline.execute(job, silent)
    result = read_result(job.run_dir)
    told = shown(job, result)
    assert "warm and cold targets are not told apart, nor is there popularity: 14 devices with one person" in told
    assert "0 warm" not in told
    assert "one person" in summary(result)["uncounted"]
