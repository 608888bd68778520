"""Runs with secure sums: the same figures as without masks, whoever is lost, and nothing of any one device for the server."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from tessera.benchmarks.attacks.hostile import Attack, federation_app
from tessera.client.app import device_app
from tessera.common.errors import ConfigError
from tessera.common.privacy.accounting import Release, epsilon
from tessera.common.protocol.masked.masking import MASKED
from tessera.common.protocol.messages import split_answers, unpack_task
from tessera.common.protocol.updates import Update, unpack_update
from tessera.deploy.executors import inline
from tessera.deploy.executors import ray as simulate
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.job import Job
from tessera.server.app import serve
from tessera.server.strategies.fedvlr import FedVLR
from tests.deploy.test_executors import SGD, assert_same_run, last_checkpoint, silent
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics

SECURE = {"secure": True}
TOLERANCE = 2e-4
"""What rounding to the fixed point may move in a few rounds: entries of gradients are right to about 1e-6."""
Answer = Callable[[Message, Context], Message]


def carry_out(job: Job, changed: Callable[[Answer], Answer]) -> None:
    """Run a job in this process with devices whose app does something else at times."""
    devices = job.devices[0].parent
    real, app = device_app(devices), ClientApp()
    handle = changed(lambda message, context: real(message, context))
    for kind in (app.train, app.evaluate, app.query):
        kind()(handle)
    serve(InlineGrid(app, len(job.devices)), job.settings, job.catalogue, job.run_dir, job.resume)


def losing(lost: Callable[[str, int, str], bool]) -> Callable[[Answer], Answer]:
    """Devices that fail at stages: `lost` is asked with the stage, or the kind of task, the node and the round or stage."""

    def changed(answer: Answer) -> Answer:
        def handle(message: Message, context: Context) -> Message:
            secure = message.content.config_records.get("secure")
            stage = str(secure["stage"]) if secure else str(message.content.config_records["task"]["kind"])
            if lost(stage, context.node_id, message.metadata.group_id):
                raise RuntimeError("the device is gone")
            return answer(message, context)

        return handle

    return changed


def rounds(run: Path) -> list[dict]:
    return [line for line in read_metrics(run) if line["kind"] == "round"]


@pytest.mark.parametrize(
    "changes",
    [
        {"views": {"dim": 8, "id_dim": 8, "spectral_rounds": 3}, "fraction": 0.6},
        {"local": {"backbone": "fedavg", "loss": "bce", "local_epochs": 2}},
        {"local": {"backbone": "history", "loss": "next", "weighting": "examples"}},
        {"data": {"folder": "small", "cold_users": 0.15, "cold_items": 0.1}},
        {
            "views": {"dim": 8, "operators": [], "item_ids": False, "encoder": "bottleneck", "spectral_rounds": 3},
            "local": {"backbone": "cosine", "loss": "next", "history_mask": 0.0},
        },
    ],
)
def test_a_run_under_masks_is_the_run_without(tmp_path: Path, changes: dict) -> None:
    """Statistics, spectral start, baselines, training and evaluation: every figure, and all that is learnt."""
    inline.execute(small_job(tmp_path, "plain", 4, server=SGD, **changes), silent)
    inline.execute(small_job(tmp_path, "secure", 4, server=SGD, privacy=SECURE, **changes), silent)
    assert_same_run(tmp_path / "plain", tmp_path / "secure", TOLERANCE)


def test_the_server_gets_masks_and_sums_only(tmp_path: Path) -> None:
    """Of twenty devices it reads two groups' sums; every answer to a task holds one masked upload and no number."""
    seen = 0

    def watching(answer: Answer) -> Answer:
        def handle(message: Message, context: Context) -> Message:
            nonlocal seen
            reply = answer(message, context)
            if "task" in message.content.config_records:
                task, _, _ = unpack_task(message.content)
                for one, content in split_answers(task, reply.content).items():
                    update = unpack_update(content, [MASKED])
                    assert len(update[MASKED]) == 1, one
                    assert not any((update.gradients, update.counts, update.sums.values, update.weight))
                    seen += 1
            return reply

        return handle

    carry_out(small_job(tmp_path, "secure", 14, privacy=SECURE | {"group": 8}, rounds=2), watching)
    assert seen == 14 * (1 + 1 + 2 + 1)  # statistics, baselines, two rounds, one evaluation


@pytest.mark.parametrize("stage", ["train", "unmask"])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_sums_of_those_who_answered_are_those_without_masks(tmp_path: Path, stage: str, share: float) -> None:
    """Devices lost before their upload are not in the sum; those lost after it are, though they do not help to unmask it."""
    n = 10
    gone = losing(lambda at, node, group: at == stage and (node + sum(map(ord, group))) % n < n * share)
    absent = losing(lambda at, node, group: at == "train" and (node + sum(map(ord, group))) % n < n * share)
    carry_out(small_job(tmp_path, "secure", n, rounds=2, server=SGD, privacy=SECURE), gone)
    carry_out(
        small_job(tmp_path, "plain", n, rounds=2, server=SGD), absent if stage == "train" else losing(lambda *at: False)
    )
    assert [line["nodes"] for line in rounds(tmp_path / "secure")] == [
        line["nodes"] for line in rounds(tmp_path / "plain")
    ]
    assert [line["loss"] for line in rounds(tmp_path / "secure")] == pytest.approx(
        [line["loss"] for line in rounds(tmp_path / "plain")], abs=1e-3
    )


@pytest.mark.parametrize("stage", ["", "train", "unmask"])
def test_words_of_16_bits_are_the_sums_without_masks_to_their_precision(tmp_path: Path, stage: str) -> None:
    """Along as many directions as hold nearly all, with a third of ten devices lost at a stage: half the bytes of 32 bits."""
    n, wire = 10, {"views": "float32", "gradients": "int16", "explained": 0.9999}
    gone = losing(lambda at, node, group: at == stage and (node + sum(map(ord, group))) % n < 3)
    absent = gone if stage == "train" else losing(lambda *at: False)
    many = {"local": {"backbone": "history", "learning_rate": 0.3}, "planted": True, "server": SGD, "rounds": 4}
    carry_out(small_job(tmp_path, "short", n, privacy=SECURE, wire=wire, **many), gone)
    carry_out(small_job(tmp_path, "plain", n, wire=wire | {"gradients": "float32"}, **many), absent)
    short, plain = (rounds(tmp_path / name) for name in ("short", "plain"))
    assert [line["loss"] for line in short] == pytest.approx([line["loss"] for line in plain], rel=1e-4)
    assert short[-1]["loss"] < short[0]["loss"]
    if stage:
        return
    carry_out(small_job(tmp_path, "long", n, privacy=SECURE, wire=wire | {"gradients": "float32"}, **many), gone)
    long = rounds(tmp_path / "long")
    assert short[0]["bytes_up_per_node"] == long[0]["bytes_up_per_node"], (
        "the first sum tells how long the next ones are"
    )
    assert short[1]["bytes_up_per_node"] < 0.7 * long[1]["bytes_up_per_node"]


@pytest.mark.parametrize("stage", ["keys", "roster", "delivery"])
def test_a_device_lost_with_its_keys_is_back_in_the_next_epoch(tmp_path: Path, stage: str) -> None:
    """A device that does not share its keys is in no group; the next epoch begins at once, and no figure is without it."""
    n, gone = 5, [2]

    def lost(at: str, node: int, group: str) -> bool:
        if at == stage and node in gone:
            gone.clear()
            return True
        return False

    carry_out(small_job(tmp_path, "secure", n, privacy=SECURE, rounds=2), losing(lost))
    assert not gone
    assert [line["nodes"] for line in rounds(tmp_path / "secure")] == [n] * 2


# --- distributed noise

NOISED = SECURE | {"clip": 0.01, "noise": "distributed", "noise_multiplier": 3.0}


def summed(job: Job, monkeypatch: pytest.MonkeyPatch) -> list[Update]:
    """Run a job; the sums of training that its strategy got to step on."""
    found: list[Update] = []
    step = FedVLR.aggregate
    with monkeypatch.context() as patch:
        patch.setattr(FedVLR, "aggregate", lambda self, update: (found.append(update), step(self, update))[1])
        inline.execute(job, silent)
    return found


@pytest.mark.parametrize("explained", [1, 0.9])
def test_a_sum_has_the_noise_that_is_counted_and_says_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, explained: float
) -> None:
    """Noise of z C sqrt(n / counted) on each number that travels, around the clipped sum; a weight that is the same whoever
    took part, and no loss."""
    changes = {"rounds": 1, "fraction": 0.5, "wire": {"views": "float32", "explained": explained}}
    plain = {"clip": 0.01, "noise_multiplier": 1e-9}  # without a sketch, as with noise
    (clean,) = summed(small_job(tmp_path, "plain", 4, privacy=plain, **changes), monkeypatch)
    (noised,) = summed(small_job(tmp_path, "noised", 4, privacy=NOISED, **changes), monkeypatch)
    assert noised.weight == pytest.approx(0.5 * 14)
    assert noised.sums["loss"] == 0
    assert noised.gradients.keys() == clean.gradients.keys()
    for name, gradient in noised.gradients.items():
        noise = (gradient - clean.gradients[name]).flatten()
        assert float(noise.std()) == pytest.approx(3 * 0.01 * (4 / 2) ** 0.5, rel=0.15), name
    (line,) = rounds(tmp_path / "noised")
    assert "loss" not in line
    assert line["epsilon"] == pytest.approx(epsilon({Release(3.0, 0.5, discrete=True): 1}, 1e-5))


def test_a_run_ends_with_its_budget_and_says_what_it_used(tmp_path: Path) -> None:
    """Also where it is resumed, which tells what it does again a second time."""
    one = Release(3.0, discrete=True)
    budget = NOISED | {"max_epsilon": epsilon({one: 6}, 1e-5) + 0.01, "delta": 1e-5}
    inline.execute(small_job(tmp_path, "run", 3, privacy=budget, rounds=3), silent)
    assert [line["epsilon"] for line in rounds(tmp_path / "run")] == [
        pytest.approx(epsilon({one: n}, 1e-5)) for n in (1, 2, 3)
    ]
    inline.execute(small_job(tmp_path, "run", 3, resume=True, privacy=budget, rounds=20), silent)
    *_, result = read_metrics(tmp_path / "run")
    assert (result["rounds"], result["delta"]) == (
        5,
        1e-5,
    )  # one of six may have been under way when the run was stopped
    assert result["epsilon"] == pytest.approx(epsilon({one: 6}, 1e-5))
    assert {"validation", "test"} <= {name.partition("/")[0] for name in result["scores"]}


@pytest.mark.slow
def test_a_hundred_rounds_with_a_third_failing(tmp_path: Path) -> None:
    """Others each round, two before they answer and one before it helps to unmask: the run completes, and its loss falls."""
    now = [0]

    def lost(at: str, node: int, group: str) -> bool:
        if at == "train":
            now[0] = int(group)
        first, second, third = ((7 * now[0] + step) % 10 for step in (0, 3, 6))
        return node % 10 in {"train": (first, second), "unmask": (third,)}.get(at, ())

    failing = losing(lost)
    job = small_job(tmp_path, "secure", 10, rounds=100, privacy=SECURE, evaluation={"every": 20}, planted=True)
    carry_out(job, failing)
    losses = [line["loss"] for line in rounds(tmp_path / "secure")]
    assert len(losses) == 100
    assert losses[-1] < losses[0]


def test_other_views_for_one_device_give_the_server_nothing(tmp_path: Path) -> None:
    """One that works on other tensors than the rest has masks that do not cancel: its answer is refused by the server."""

    def otherwise(answer: Answer) -> Answer:
        def handle(message: Message, context: Context) -> Message:
            header = message.content.config_records.get("task", {})
            if context.node_id == 1 and header.get("kind") == "train":
                message.content = RecordDict({**message.content, "task": ConfigRecord({**header, "selected": 7})})
            return answer(message, context)

        return handle

    carry_out(small_job(tmp_path, "secure", 4, privacy=SECURE), otherwise)
    for line in rounds(tmp_path / "secure"):
        assert line["nodes"] == 3
        assert "other tensors" in " ".join(line["troubles"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nodes": 2}, "set federation.nodes to 3"),
        ({"wire": {"gradients": "1%"}}, "wire.gradients"),
        ({"wire": {"gradients": "int16"}, "privacy": NOISED}, "set wire.gradients to float32"),
        ({"privacy": {"secure": True, "group": 7}}, "privacy.group"),
        ({"nodes": 12, "federation": {"defence": "trim"}}, "set privacy.group to 8 and ask 24 nodes"),
    ],
)
def test_what_cannot_be_masked_is_refused_in_the_config(tmp_path: Path, changes: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        small_job(tmp_path, "secure", **({"nodes": 3, "privacy": SECURE} | changes))


def test_one_persons_device_counts_in_a_secure_sum(tmp_path: Path) -> None:
    """Alone its counts would be its history; of a group's sum they are nobody's, and warm items are told from cold ones."""
    job = small_job(tmp_path, "secure", 14, rounds=1, privacy=SECURE)
    inline.execute(job, silent)
    assert read_metrics(job.run_dir)[0]["withheld"] == 0
    assert "popularity/test/all/hr@50" in read_metrics(job.run_dir)[-1]["baselines"]


def test_sums_of_groups_are_defended_against_a_hostile_device(tmp_path: Path) -> None:
    """One of 24 devices answers with gradients a thousand times too long: what is learnt from three groups' sums is closer to
    what is learnt without it where the groups are held against one another."""

    def learnt(name: str, defence: str, hostile: bool) -> torch.Tensor:
        federation, privacy = {"defence": defence}, SECURE | {"group": 8}
        job = small_job(tmp_path, name, 24, planted=True, federation=federation, privacy=privacy, server=SGD, rounds=1)
        rare = torch.tensor([0, 1, 2])
        attack = Attack("unbounded", rare, rare + 3, 66)
        app = federation_app(job.devices[0].parent, attack, frozenset({5} if hostile else ()))
        serve(InlineGrid(app, 24), job.settings, job.catalogue, job.run_dir, resume=False)
        return torch.cat([value.flatten() for _, value in sorted(last_checkpoint(job.run_dir).items())])

    honest = learnt("honest", "none", hostile=False)
    undefended = float((learnt("undefended", "none", hostile=True) - honest).norm())
    for defence in ("trim", "row-cap"):
        assert float((learnt(defence, defence, hostile=True) - honest).norm()) < undefended / 3, defence


@pytest.mark.integration
def test_ray_equals_inline_under_masks_also_when_resumed_by_new_workers(tmp_path: Path) -> None:
    inline.execute(small_job(tmp_path, "inline", 3, server=SGD), silent)
    simulate.execute(
        small_job(tmp_path, "ray", 3, rounds=2, server=SGD, privacy=SECURE), silent
    )  # its workers end with it
    simulate.execute(small_job(tmp_path, "ray", 3, server=SGD, privacy=SECURE, resume=True), silent)
    assert [line["round"] for line in rounds(tmp_path / "ray")] == [1, 2, 3, 4]
    assert_same_run(tmp_path / "inline", tmp_path / "ray", TOLERANCE)
