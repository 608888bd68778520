"""One job, three executors and any number of nodes: the same numbers. Kills and resumes lose at most the round in flight."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message

from tessera.client.app import device_app
from tessera.client.recommend import Personal
from tessera.client.recommendation import RecommendationClient
from tessera.common.errors import RunError, TesseraError
from tessera.common.metrics.records import Record
from tessera.common.protocol.messages import BASIS, unpack_task
from tessera.common.protocol.tensors import content_hash
from tessera.common.utils.atomic_files import read_tensors
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.job import Job
from tessera.server.app import serve
from tessera.server.views.spectral_init import leading_vectors
from tests.support.catalogues import small_dataset, small_job, small_split
from tests.support.metrics import read_metrics

# Adam divides by the size of a gradient and so blows up the rounding of sums taken in another order: SGD shows it as it is.
SGD = {"optimizer": "sgd", "learning_rate": 0.5}


def silent(line: Record) -> None:
    """Hear nothing."""


def last_checkpoint(run_dir: Path) -> dict[str, torch.Tensor]:
    return read_tensors(sorted((run_dir / "checkpoints").glob("*.safetensors"))[-1])[0]


def private_states(run_dir: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Newest private state of each block, by the users in it."""
    found = {}
    for block in sorted((run_dir / "devices").glob("node-*/private/*/block-*")):
        tensors, metadata = read_tensors(sorted(block.glob("*.safetensors"))[-1])
        for row, user in enumerate(json.loads(metadata["users"])):
            found[user] = {name: value[row] for name, value in tensors.items()}
    return found


def assert_same_run(left: Path, right: Path, tolerance: float) -> None:
    """Everything learnt, on the server and on the devices, and every reported loss and score."""
    for name, value in last_checkpoint(left).items():
        torch.testing.assert_close(last_checkpoint(right)[name], value, rtol=tolerance, atol=tolerance)
    mine, theirs = private_states(left), private_states(right)
    assert mine.keys() == theirs.keys()
    for user, tensors in mine.items():
        for name, value in tensors.items():
            torch.testing.assert_close(theirs[user][name], value, rtol=tolerance, atol=tolerance)
    for one, other in zip(read_metrics(left), read_metrics(right), strict=True):
        assert one["kind"] == other["kind"]
        if one["kind"] == "round":
            assert one["loss"] == pytest.approx(other["loss"], abs=max(tolerance, 1e-12))
        assert one.get("scores", {}) == pytest.approx(other.get("scores", {}), abs=1e-3)


@pytest.mark.parametrize("local", [{"backbone": "history"}, {"backbone": "fedavg", "loss": "bce", "local_epochs": 2}])
def test_one_three_and_seven_nodes_give_the_same_result(tmp_path: Path, local: dict) -> None:
    for nodes in (1, 3, 7):
        job = small_job(tmp_path, f"nodes-{nodes}", nodes, local=local, fraction=0.7, server=SGD)
        inline.execute(job, silent)
    assert_same_run(tmp_path / "nodes-1", tmp_path / "nodes-3", 1e-5)
    assert_same_run(tmp_path / "nodes-1", tmp_path / "nodes-7", 1e-5)


def test_default_optimiser_and_wire_agree_closely(tmp_path: Path) -> None:
    """As a whole: a single number whose gradient is nearly zero goes Adam's way by rounding, and by the processor it is on."""
    for nodes in (1, 3):
        inline.execute(small_job(tmp_path, f"nodes-{nodes}", nodes, wire={}, rounds=10), silent)
    mine, theirs = (last_checkpoint(tmp_path / f"nodes-{nodes}") for nodes in (1, 3))
    learnt = [name for name in mine if name.startswith("model/")]
    one, other = (torch.cat([found[name].flatten() for name in learnt]).double() for found in (mine, theirs))
    assert float((one - other).norm() / one.norm()) < 2e-3
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / f"nodes-{n}") if line["kind"] == "round"] for n in (1, 3)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_cohort_size_changes_no_result(tmp_path: Path) -> None:
    for size in (3, 512):
        inline.execute(small_job(tmp_path, f"size-{size}", 2, local={"batch_users": size}, server=SGD), silent)
    assert_same_run(tmp_path / "size-3", tmp_path / "size-512", 1e-5)


def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    inline.execute(small_job(tmp_path, "whole", 2, rounds=6), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=4), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=6, resume=True), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "parts")


def test_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    federation = {"checkpoint_every": 3}
    inline.execute(small_job(tmp_path, "whole", 2, rounds=30, federation=federation), silent)
    killed = small_job(tmp_path, "killed", 2, rounds=30, federation=federation)
    rounds = kill_after(killed, n_rounds=8)
    assert 8 <= rounds < 30
    inline.execute(small_job(tmp_path, "killed", 2, rounds=30, federation=federation, resume=True), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "killed")


def kill_after(job: Job, n_rounds: int) -> int:
    """Run a job in a process of its own and kill it (-9) when so many rounds are reported; return how many were."""
    program = (
        "import sys, pickle; from tessera.deploy.executors import inline; "
        "inline.execute(pickle.load(sys.stdin.buffer), lambda line: __import__('time').sleep(0.02))"
    )
    import pickle

    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdin
    process.stdin.write(pickle.dumps(job))
    process.stdin.close()
    deadline = time.monotonic() + 60

    def rounds() -> int:
        return sum(line["kind"] == "round" for line in read_metrics(job.run_dir))

    while rounds() < n_rounds and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return rounds()


def assert_bitwise(left: Path, right: Path) -> None:
    assert_same_run(left, right, 0.0)


def test_a_run_is_resumed_only_as_what_it_was(tmp_path: Path) -> None:
    inline.execute(small_job(tmp_path, "run", 2), silent)
    with pytest.raises(TesseraError, match="'seed'"):
        inline.execute(small_job(tmp_path, "run", 2, resume=True, seed=5), silent)
    with pytest.raises(RunError, match="2 nodes, not 3"):
        small_job(tmp_path, "run", 3, resume=True)
    with pytest.raises(RunError, match="--resume"):
        small_job(tmp_path, "run", 2)


def test_a_device_with_another_catalogue_is_refused_and_named(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 2)
    other = small_dataset(tmp_path / "other", n_items=39)
    with pytest.raises(
        RunError,
        match="0 nodes answered to item_statistics, 2 must: node 1 holds a catalogue of 40 items, this run has 39",
    ):
        inline.execute(Job(job.settings, other, job.devices, job.run_dir), silent)
    assert json.loads((job.run_dir / "status.json").read_text())["state"] == "failed"


def breaking(job: Job, node: int, after: int):
    """A listener that spoils a device's data when round `after` is reported."""

    def listen(line: Record) -> None:
        if line.kind == "round" and line.round == after:
            (job.devices[node] / "items.parquet").write_bytes(b"not parquet")
            (job.devices[node] / "interactions.parquet").write_bytes(b"not parquet")

    return listen


def test_one_broken_device_does_not_stop_the_others_and_is_named(tmp_path: Path, caplog) -> None:
    job = small_job(tmp_path, "run", 3)
    inline.execute(job, breaking(job, node=1, after=1))
    assert "node 2 refused" in caplog.text
    lines = [line for line in read_metrics(job.run_dir) if line["kind"] == "round"]
    assert [line["nodes"] for line in lines] == [3, 2, 2, 2]


def test_rounds_with_too_few_nodes_are_abandoned_until_there_are_too_many(tmp_path: Path) -> None:
    job = small_job(tmp_path, "strict", 3, federation={"min_nodes": 3}, rounds=8)
    with pytest.raises(RunError, match=r"round 4: 3 rounds in a row were abandoned.*2 nodes answered to train, 3 must"):
        inline.execute(job, breaking(job, node=1, after=1))
    assert [line["kind"] for line in read_metrics(job.run_dir)] == [
        *("item_statistics", "round"),
        *("abandoned",) * 3,
    ]


def test_a_round_nobody_took_part_in_changes_nothing(tmp_path: Path) -> None:
    inline.execute(small_job(tmp_path, "run", 2, fraction=0.12, rounds=12, seed=1), silent)
    kinds = [line["kind"] for line in read_metrics(tmp_path / "run")]
    assert "abandoned" in kinds
    assert kinds[-1] == "result"


def test_a_killed_run_without_any_checkpoint_begins_again(tmp_path: Path) -> None:
    federation = {"checkpoint_every": 10}
    inline.execute(small_job(tmp_path, "whole", 2, rounds=10, federation=federation), silent)
    kill_after(small_job(tmp_path, "killed", 2, rounds=10, federation=federation), n_rounds=2)
    inline.execute(small_job(tmp_path, "killed", 2, rounds=10, federation=federation, resume=True), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "killed")


def test_a_run_that_stopped_early_stays_stopped(tmp_path: Path) -> None:
    changes = {"rounds": 60, "evaluation": {"every": 1, "patience": 2}}
    inline.execute(small_job(tmp_path, "run", 2, **changes), silent)
    rounds = read_metrics(tmp_path / "run")[-1]["rounds"]
    assert rounds < 60
    inline.execute(small_job(tmp_path, "run", 2, resume=True, **changes), silent)
    assert read_metrics(tmp_path / "run")[-1]["rounds"] == rounds


def test_spectral_start_is_the_same_for_any_nodes_and_close_to_the_svd(tmp_path: Path) -> None:
    views = {"dim": 8, "id_dim": 8, "spectral_rounds": 60}
    for nodes in (1, 3, 7):
        inline.execute(small_job(tmp_path, f"nodes-{nodes}", nodes, views=views, server=SGD), silent)
    assert_same_run(tmp_path / "nodes-1", tmp_path / "nodes-3", 1e-4)
    assert_same_run(tmp_path / "nodes-1", tmp_path / "nodes-7", 1e-4)

    split = small_split(14, 40)
    rows = np.zeros((14, 40), dtype=np.float32)
    rows[np.repeat(np.arange(14), np.diff(split.offsets)), split.train_items] = 1
    scaled = torch.from_numpy(rows / rows.sum(1, keepdims=True) ** 0.25)
    _, wanted, right = torch.linalg.svd(scaled, full_matrices=False)
    vectors, values = leading_vectors(lambda basis: scaled.T @ (scaled @ basis), 40, rank=8, rounds=60, seed=0)
    torch.testing.assert_close(values, wanted[:8], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(vectors @ vectors.T, right[:8].T @ right[:8], rtol=0, atol=0.02)


def test_items_of_few_people_are_in_no_spectral_start(tmp_path: Path) -> None:
    """No device is asked about them, and the rest is what the singular value decomposition without them gives."""
    counts = torch.from_numpy(small_split(14, 40).counts())
    least = int(counts.median()) + 1
    kept = counts >= least
    assert 2 <= kept.sum() < 40
    views = {"dim": 8, "id_dim": 8, "spectral_rounds": 2, "spectral_min_people": least}
    job = small_job(tmp_path, "run", 3, views=views)
    asked = []

    class Watching(InlineGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent = list(messages)
            for message in sent:
                task, _, inputs = unpack_task(message.content)
                asked.extend([inputs[BASIS]] if task.kind == "power" else [])
            return super().push_messages(sent)

    serve(Watching(device_app(job.devices[0].parent), 3), job.settings, job.catalogue, job.run_dir, resume=False)
    assert len(asked) == 6
    for basis in asked:
        assert torch.equal(basis.any(1), kept)
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1]), rtol=0, atol=1e-5)


def test_people_can_be_served_while_and_after_a_round_dies(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 1)
    inline.execute(job, silent)
    personal = Personal.open(job.devices[0])
    before = personal.recommend("person-0", 5)
    # The next round's views arrive, and the device dies before it has trained.
    later = replace(personal.task, kind="train", round=personal.task.round + 1, tensors=content_hash(personal.sent))
    RecommendationClient(job.devices[0]).hold(later, personal.sent)
    assert Personal.open(job.devices[0]).recommend("person-0", 5) == before


def test_one_persons_device_withholds_what_would_be_their_history(tmp_path: Path) -> None:
    job = small_job(tmp_path, "run", 14, rounds=1)
    inline.execute(job, silent)
    result = read_metrics(job.run_dir)[-1]
    assert read_metrics(job.run_dir)[0]["withheld"] == 14
    assert {name.split("/")[1] for name in result["scores"]} == {"all"}
    assert "popularity/test/all/hr@50" not in result["baselines"]
    assert "random/test/all/hr@50" in result["baselines"]
