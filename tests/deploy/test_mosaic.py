"""FedMosaic over the wire: what travels, who is left out, and the same run over any executor and after any interruption."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tessera.client.adapters.signature import DECAYED
from tessera.client.app import app
from tessera.client.methods import LocalTraining, make_method
from tessera.client.private_state import Store
from tessera.client.qa_client import QUESTIONS, QAClient
from tessera.common.config.settings import TOWER_DIM
from tessera.common.data.questions import Questions
from tessera.common.errors import DataError, RunError
from tessera.common.protocol.adapters import ADAPTERS, LOGITS, MODULE, AdapterUpdate, ClientAdapters
from tessera.common.protocol.messages import Task
from tessera.common.protocol.signature_mask import kept_coordinates, n_kept
from tessera.common.protocol.tensors import array_bytes
from tessera.common.protocol.updates import Update
from tessera.common.registry.methods import METHODS, SignatureSettings
from tessera.common.towers.aligned_init import aligned_init_path
from tessera.common.towers.io import save_reader
from tessera.common.utils.atomic_files import read_tensors, write_tensors
from tessera.deploy.executors import inline
from tessera.deploy.executors import ray as simulate
from tessera.deploy.executors.run import run_job
from tessera.deploy.job import Job
from tessera.deploy.provisioning.towers import align
from tessera.server.strategies.fedmosaic import expected
from tests.deploy.test_executors import assert_same_run, silent
from tests.support.metrics import read_metrics
from tests.support.qa_devices import (
    BLOCKS,
    RANK,
    READERS,
    TASKS,
    Exchange,
    Spoil,
    naive_mix,
    qa_dataset,
    qa_job,
    qa_settings,
    reader,
    tapped,
)

SIGNER = READERS["tiny"].width
USUAL = SignatureSettings()
N_KEPT = n_kept(SIGNER * TOWER_DIM + TOWER_DIM, USUAL.kept)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qa_dataset(tmp_path_factory.mktemp("qa") / "data")


def overheard(job: Job, spoil: Spoil = lambda node, task, update: update) -> list[Exchange]:
    """Run a job and listen in."""
    exchanges: list[Exchange] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline, "InlineGrid", tapped(exchanges, spoil))
        inline.execute(job, silent)
    return exchanges


def sent_in(exchanges: list[Exchange], round: int) -> dict[str, AdapterUpdate]:
    """What clients sent in the training of a round."""
    found: dict[str, AdapterUpdate] = {}
    for exchange in exchanges:
        if (exchange.task.kind, exchange.task.round) == ("train", round):
            found |= exchange.update[ADAPTERS].modules
    return found


def came_down(exchanges: list[Exchange], kind: str, round: int) -> dict[str, dict[str, Tensor]]:
    """The module that each client was sent."""
    asked = [e for e in exchanges if (e.task.kind, e.task.round) == (kind, round)]
    return {e.update.clients()[0]: {n.removeprefix(MODULE): value for n, value in e.down.items()} for e in asked}


def rounds(job: Job) -> list[dict]:
    return [line for line in read_metrics(job.run_dir) if line["kind"] == "round"]


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=1e-5, atol=1e-7)


@dataclass(frozen=True)
class Heard:
    """A run of two rounds with two devices of each of two classes."""

    job: Job
    exchanges: list[Exchange]
    method: str
    uploads: str | None


@pytest.fixture(scope="module", params=METHODS)
def heard(request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Heard:
    folder = tmp_path_factory.mktemp(request.param)
    job = qa_job(dataset, folder / "run", 4, rounds=2, mosaic={"method": request.param})
    return Heard(job, overheard(job), request.param, make_method(job.settings.mosaic.method).uploads)


def test_only_what_is_merged_goes_up_and_each_gets_its_own_mix(heard: Heard) -> None:
    method, uploads = METHODS[heard.method], heard.uploads
    assert len(heard.exchanges) == 4 * (1 + 2 + 2)
    for exchange in heard.exchanges:
        update, (client,) = exchange.update, exchange.update[ADAPTERS].towers
        assert not update.gradients
        assert not update.counts
        sends = exchange.task.kind == "train" and method.shares != "nothing"
        assert set(update[ADAPTERS].modules) == ({client} if sends else set())
        assert all(name.startswith(MODULE) for name in exchange.down)
    for round in (1, 2):
        sent, got = sent_in(heard.exchanges, round), came_down(heard.exchanges, "evaluate", round)
        assert len(got) == 4
        for client, module in got.items():
            if method.shares == "logits":
                (said,) = {one.logits for one in (sent[client],) if not one.pq and not one.lora}
                assert said is not None
                assert {name: value.shape for name, value in module.items()} == {LOGITS: said.shape}
                assert torch.equal(module[LOGITS], next(iter(got.values()))[LOGITS]), "the server's, for everybody"
                continue
            mixed = naive_mix(sent, client, method.shares == "relevant") if uploads else {}
            if method.shares == "distilled":
                assert {n: v.shape for n, v in module.items()} == {n: v.shape for n, v in mixed.items()}
                assert 0 < max(float((module[name] - value).abs().max()) for name, value in mixed.items()) < 0.1
            else:
                assert_close(module, mixed)
        if method.shares == "relevant":
            assert len({float(next(iter(module.values())).sum()) for module in got.values()}) == 4
    assert not any(e.down for e in heard.exchanges if e.task.kind == "train"), "they hold what the evaluation brought"


def test_bytes_are_those_of_p_q_lora_and_the_signature(heard: Heard) -> None:
    method, r = METHODS[heard.method], RANK
    for name in ("tiny", "small"):
        width, depth = READERS[name].width, READERS[name].depth
        placed = BLOCKS if method.pq else 0
        in_and_out = 4 * 2 * width + 2 * 5 * width  # q, k, v, out; and the two of the MLP
        module = (
            placed * 4 * 4 * (r * r + r) + depth * 4 * r * in_and_out
        )  # P and Q, but for q and k, beside plain LoRA
        logits = 4 * 4 * 600 if method.shares == "logits" else 0
        module = module if heard.uploads else logits
        signature = 4 * N_KEPT if method.shares == "relevant" else 0
        of_class = [e for e in heard.exchanges if next(iter(e.update[ADAPTERS].towers.values())).startswith(name)]
        assert len(of_class) == 2 * 5
        for exchange in of_class:
            up = module + signature if exchange.task.kind == "train" else 0
            down = module if exchange.task.kind == "evaluate" else 0
            n_arrays = 2 * 6 * depth + 2 * 4 * placed + 1
            assert up <= array_bytes(exchange.reply) <= up + 256 * n_arrays * bool(up)
            assert down <= array_bytes(exchange.question) <= down + 256 * n_arrays * bool(down)


def test_nothing_private_is_in_any_message(heard: Heard) -> None:
    said = b"".join(exchange.raw for exchange in heard.exchanges)
    assert b"qa-devices" in said, "the tap works"
    assert b"gate/" not in said
    secrets = [(name, secret) for folder in heard.job.devices for name, secret in private(heard, folder)]
    assert len(secrets) > 100
    for name, secret in secrets:
        assert secret not in said, name


def private(heard: Heard, folder: Path) -> Iterator[tuple[str, bytes]]:
    """What must not leave a device: gates, the branch that is not sent, the signature as it was, and its questions."""
    kept = Store(next((folder / "private").iterdir())).load(0, before=10**6)
    assert kept is not None
    tensors = {name: value[0] for name, value in kept.parameters.items()}
    hidden = {name: value for name, value in tensors.items() if name.startswith("local/")}
    if heard.uploads == "local":
        hidden = {}
    hidden["gates"] = torch.stack([value for name, value in tensors.items() if name.startswith("gate/")])
    if DECAYED in tensors:
        hidden |= {f"gradient {at}": part for at, part in enumerate(tensors[DECAYED].split(16))}
        hidden["the noise-free signature"] = noise_free(tensors[DECAYED])
    for name, value in hidden.items():
        for dtype in (torch.float32, torch.float16, torch.float64):
            secret = value.flatten()[:8].to(dtype).numpy().tobytes()
            if len(set(secret)) >= 6:  # zeros would be found anywhere
                yield f"{name} of {folder.name}", secret
    train = Questions.load(folder / QUESTIONS / "train.safetensors")
    for dtype in (torch.int64, torch.int32, torch.float32):
        yield f"answers of {folder.name}", train.answers.to(dtype).numpy().tobytes()
        for row in range(0, len(train), 10):
            yield f"question {row} of {folder.name}", train.pieces[row].to(dtype).numpy().tobytes()
    yield from ((f"task {name}", name.encode()) for name in (*train.names, *train.instructions))


def noise_free(decayed: Tensor) -> Tensor:
    """What would be sent of a device's gradient without noise."""
    clipped = decayed * (USUAL.limit / decayed.norm().clamp(min=USUAL.limit))
    return clipped[kept_coordinates(len(decayed), 0, USUAL.kept)]


def test_a_signature_is_noised_before_it_leaves(heard: Heard) -> None:
    if METHODS[heard.method].shares != "relevant":
        pytest.skip("no signatures")
    for exchange in heard.exchanges:
        if (exchange.task.kind, exchange.task.round) == ("train", 2):
            (client, sent), folder = *exchange.update[ADAPTERS].modules.items(), heard.job.devices[exchange.node - 1]
            kept = Store(folder / "private" / exchange.task.run).load(0, before=3)
            assert kept is not None
            assert kept.users == (client,)
            noise = sent.signature - noise_free(kept.parameters[DECAYED][0])
            assert (noise != 0).float().mean() > 0.99
            assert 0.9 * USUAL.noise < float(noise.std()) < 1.1 * USUAL.noise


def broken(node: int, client: str, update: Update) -> Update:
    """What hostile or faulty nodes send: a P that is no P, another client's name (5), or two clients (6)."""
    own = update[ADAPTERS].modules[client]
    name, p = next(iter(own.pq.items()))
    bad = {2: torch.zeros(RANK + 1, RANK), 3: torch.full_like(p, torch.nan), 4: torch.full_like(p, 1e6)}
    if node in bad:
        worse = replace(own, pq={**own.pq, name: bad[node]})
        return update.put(ADAPTERS, replace(update[ADAPTERS], modules={client: worse}))
    modules = {"0123456789abcdef": own} | ({} if node == 5 else {client: own})
    return update.put(ADAPTERS, ClientAdapters(dict.fromkeys(modules, own.tower), modules))


def test_whoever_sends_what_cannot_be_merged_is_named_and_left_out(
    tmp_path: Path, dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(node: int, task: Task, update: Update) -> Update:
        if node > 1 and (task.kind, task.round) == ("train", 2) and update[ADAPTERS].towers:
            return broken(node, next(iter(update[ADAPTERS].towers)), update)
        return update

    job = qa_job(dataset, tmp_path / "run", 6, rounds=2)
    exchanges = overheard(job, spoil)
    reasons = [
        "P of shape (5, 4), not (4, 4)",
        "P that is not finite",
        "P of a norm above 1000",
        *2 * ["another client"],
    ]
    for node, why in enumerate(reasons, 2):
        line = next(line for line in caplog.messages if f"round 2, train: node {node} " in line)
        assert "returned something malformed" in line
        assert why in line
    assert [line["nodes"] for line in rounds(job)] == [6, 1]
    first, second = sent_in(exchanges, 1), sent_in(exchanges, 2)
    honest = next(iter(exchanges[0].update[ADAPTERS].towers))
    got = came_down(exchanges, "evaluate", 2)
    assert len(got) == 6
    for client, module in got.items():  # of all but the honest one, what they sent before
        assert_close(module, naive_mix({**first, honest: second[honest]}, client, relevant=True))


def test_no_node_can_speak_for_another_from_the_beginning(tmp_path: Path, dataset: Path) -> None:
    names: list[str] = []

    def spoil(node: int, task: Task, update: Update) -> Update:
        names.extend(update[ADAPTERS].towers)
        return update.put(ADAPTERS, ClientAdapters({names[0]: "tiny-0"})) if node == 3 and names else update

    with pytest.raises(RunError, match="node 3 returned something malformed: it speaks for another client"):
        overheard(qa_job(dataset, tmp_path / "run", 3), spoil)


def test_an_absent_node_keeps_its_say_and_gets_its_mix_later(tmp_path: Path, dataset: Path) -> None:
    job = qa_job(dataset, tmp_path / "run", 3, federation={"clients_per_round": 3})  # evaluated apart
    exchanges = overheard(job, lambda node, task, update: None if (node, task.round) == (2, 2) else update)
    assert [line["nodes"] for line in rounds(job)] == [3, 2, 3]
    first, second = sent_in(exchanges, 1), sent_in(exchanges, 2)
    (absent,) = first.keys() - second.keys()
    last = {**second, absent: first[absent]}
    others, later = came_down(exchanges, "evaluate", 2), came_down(exchanges, "train", 3)
    assert others.keys() == second.keys()
    for client, module in others.items():
        assert_close(module, naive_mix(last, client, relevant=True))
    assert_close(later[absent], naive_mix(last, absent, relevant=True))
    assert_close(came_down(exchanges, "evaluate", 3)[absent], naive_mix(sent_in(exchanges, 3), absent, relevant=True))


@pytest.mark.parametrize("file", ["reader.safetensors", "start-random-r4-b2-small+tiny.safetensors"])
def test_a_device_with_another_tower_or_start_is_named_before_the_first_round(
    tmp_path: Path, dataset: Path, file: str
) -> None:
    job = qa_job(dataset, tmp_path / "run", 3, mosaic={"method": {"alignment": "random"}})
    path = job.devices[1] / "tower" / file
    if file == "reader.safetensors":
        save_reader(reader("small", seed=1), path, {})
    else:
        tensors, metadata = read_tensors(path)
        write_tensors(path, {name: value + 1e-3 for name, value in tensors.items()}, metadata)
    message = "2 nodes answered to item_statistics, 3 must: node 2 returned .* has a tower 'small-"
    with pytest.raises(RunError, match=message):
        inline.execute(job, silent)


def test_a_run_of_other_classes_leaves_the_start_of_this_one_alone(tmp_path: Path, dataset: Path) -> None:
    """Its devices could otherwise not go on: their towers would be of another start than the server's."""
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    first, other = (qa_settings(mosaic={"classes": ["tiny", name]}) for name in ("small", "base"))
    align(data, first)
    marks = expected(data, first).keys()
    align(data, other)
    assert expected(data, first).keys() == marks
    assert not expected(data, other).keys() & marks
    aligned_init_path(data / "towers" / "tiny", first.mosaic).unlink()
    with pytest.raises(DataError, match=r"start-.* does not exist: make it by `tessera data partition --config`"):
        expected(data, first)


def test_private_state_of_another_rank_is_refused(tmp_path: Path, dataset: Path) -> None:
    job = qa_job(dataset, tmp_path / "run", 1, rounds=1, mosaic={"method": "fedit"})
    exchanges = overheard(job)
    task = next(exchange.task for exchange in exchanges if exchange.task.kind == "train")
    mosaic = task.settings.mosaic.model_copy(update={"rank": 2})
    other = replace(task, settings=task.settings.model_copy(update={"mosaic": mosaic}), round=2)
    with pytest.raises(DataError, match="the adapter kept there is of another tower or rank; start a new run"):
        QAClient(job.devices[0], simulated=True).perform(other, None, {})
    run_note = (job.devices[0] / "private" / task.run / "run.json").read_text()
    assert '"round": 1' in run_note, "nothing was changed"


@pytest.mark.integration
@pytest.mark.slow  # Ray is held to inline in test_executors too
def test_ray_equals_inline(tmp_path: Path, dataset: Path) -> None:
    three = {"mosaic": {"classes": ["tiny", "small", "base"]}, "rounds": 2, "evaluation": {"every": 2}}
    inline.execute(qa_job(dataset, tmp_path / "inline", **three), silent)
    simulate.execute(qa_job(dataset, tmp_path / "ray", **three), silent)
    assert_same_run(tmp_path / "inline", tmp_path / "ray", 1e-5)


@pytest.mark.integration
@pytest.mark.slow
def test_grpc_equals_inline_with_secrets(tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real device's name, draws and noise hang on its secret and on the run's name: the inline run is given both."""
    changes = {"mosaic": {"classes": ["tiny", "small", "base"]}, "rounds": 5, "evaluation": {"every": 5}}
    grpc = qa_job(dataset, tmp_path / "grpc", **changes)
    figures = run_job(grpc, "grpc", silent)
    assert figures.rounds == 5
    assert [line["nodes"] for line in rounds(grpc)] == [3] * 5

    again = qa_job(dataset, tmp_path / "inline", **changes)
    for device, same in zip(grpc.devices, again.devices, strict=True):
        shutil.copy(device / "secret", same / "secret")
    run = next((grpc.devices[0] / "private").iterdir()).name

    class OnDevices(inline.InlineGrid):
        def __init__(self, _, n_nodes: int) -> None:
            super().__init__(app, n_nodes)
            self.nodes = {node + 1: {"data-dir": str(folder)} for node, folder in enumerate(again.devices)}

    monkeypatch.setattr(inline, "InlineGrid", OnDevices)
    monkeypatch.setattr("tessera.server.run_folder.uuid4", lambda: type("Same", (), {"hex": run.rpartition("-")[2]}))
    inline.execute(again, silent)
    assert_same_run(tmp_path / "inline", tmp_path / "grpc", 1e-5)


@pytest.mark.parametrize("n_rounds", [3, 8])
def test_no_question_of_a_task_is_drawn_before_it_begins(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch, n_rounds: int
) -> None:
    drawn: list[set[int]] = []

    def spy(local_training: LocalTraining, step: int) -> Tensor:
        rows = plain(local_training, step)
        drawn[-1] |= set(local_training.dataset.questions.tasks[rows].tolist())
        return rows

    plain = LocalTraining.rows
    monkeypatch.setattr(LocalTraining, "rows", spy)
    mosaic, evaluation = {"stream": "dynamic"}, {"every": 8}
    job = qa_job(dataset, tmp_path / "run", 1, rounds=n_rounds, mosaic=mosaic, evaluation=evaluation)
    overheard(job, lambda node, task, update: drawn.append(set()) or update)
    seen = [tasks for tasks in drawn if tasks]
    assert [max(tasks) + 1 for tasks in seen] == [-(-round * TASKS // n_rounds) for round in range(1, n_rounds + 1)]
    assert seen[-1] == set(range(TASKS)), "what was seen stays in memory"
