"""One system: people's devices with towers of two classes, whose views their routers weigh beside the server's."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tessera.client.private_state import Store
from tessera.client.recommend import Personal
from tessera.client.recommendation import RecommendationClient
from tessera.common.data.catalogue import load_catalogue
from tessera.common.errors import DataError
from tessera.common.metrics.records import Record, RoundRecord
from tessera.common.protocol.adapters import ADAPTERS
from tessera.common.protocol.codecs import decode, rotation
from tessera.common.protocol.messages import HISTORY, VIEWS
from tessera.common.utils.atomic_files import read_tensors
from tessera.deploy.cli.data import app
from tessera.deploy.executors import inline
from tessera.deploy.job import Job
from tessera.server.strategies.fedmosaic import expected
from tests.deploy.test_executors import assert_bitwise, silent
from tests.support.devices import people_job, people_settings, people_with_towers
from tests.support.metrics import read_metrics
from tests.support.qa_devices import Exchange, tapped

NAMES = ("sum", "image", "text", "id", "tower")
USERS = 14


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return people_with_towers(tmp_path_factory.mktemp("people") / "data", USERS)


@pytest.fixture(scope="module")
def overheard(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, list[Exchange]]:
    """A run of three nodes, two tiny and one small, and all that was said in it."""
    job = people_job(dataset, tmp_path_factory.mktemp("runs") / "run", 3, rounds=4)
    exchanges: list[Exchange] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inline, "InlineGrid", tapped(exchanges))
        inline.execute(job, silent)
    return job, exchanges


def adapters(run_dir: Path) -> dict[str, dict[str, Tensor]]:
    """What each device last kept of its tower."""
    folders = sorted((run_dir / "devices").glob("node-*/private/*/tower/block-0000"))
    return {folder.parents[3].name: read_tensors(max(folder.glob("*")))[0] for folder in folders}


def test_what_leaves_is_the_servers_views_gradient_and_what_a_class_may_send(
    dataset: Path, overheard: tuple[Job, list[Exchange]]
) -> None:
    job, exchanges = overheard
    n_items = len(load_catalogue(dataset, modalities=False))
    allowed = expected(dataset, job.settings)
    trainings = [exchange for exchange in exchanges if exchange.task.kind == "train"]
    assert len(trainings) == 3 * 4
    for exchange in exchanges:
        update = exchange.update
        assert len(update[ADAPTERS].towers) == 1, "a node always says which client it is"
        if exchange.task.kind != "train":
            assert not update[ADAPTERS].modules
            assert not update.gradients
            continue
        full = {VIEWS: (len(NAMES) - 1, n_items, 64), HISTORY: (n_items, 64)}
        came = decode(update.gradients, full, "float32", rotation(job.settings.seed, exchange.task.round))
        assert {name: tuple(value.shape) for name, value in came.items()} == full
        (client,) = update[ADAPTERS].modules
        sent = {name: tuple(part.shape) for name, part in update[ADAPTERS].modules[client].parts().items()}
        assert sent == allowed[update[ADAPTERS].towers[client]]


def test_no_message_holds_the_own_view_the_gates_or_the_moments(overheard: tuple[Job, list[Exchange]]) -> None:
    """A single gate is four bytes that may be found anywhere: that none is sent is the test above."""
    job, exchanges = overheard
    said = b"".join(exchange.raw for exchange in exchanges)
    secrets: list[tuple[str, Tensor]] = []
    for folder in job.devices:
        personal = Personal.open(folder)
        secrets += [(f"view of item {item}", row) for item, row in enumerate(personal.sent[VIEWS][-1])]
        kept = Store(folder / "private" / personal.task.run / "tower").load(0, before=10**6)
        assert kept is not None
        secrets.append(("gates", torch.stack([v[0] for n, v in kept.parameters.items() if n.startswith("gate/")])))
        own = ("mean.", "square.", "signature")
        secrets += [(name, value.flatten()[:64]) for name, value in kept.parameters.items() if name.startswith(own)]
    written = [
        (name, value.to(dtype).numpy().tobytes())
        for name, value in secrets
        for dtype in (torch.float32, torch.float16, torch.float64)
    ]
    telling = [(name, secret) for name, secret in written if len(set(secret)) >= 6]  # not what rounds to zeros
    assert {"gates", "signature", "view of item 0"} <= {name for name, _ in telling}
    for name, secret in telling:
        assert secret not in said, name


def test_devices_of_two_classes_learn_from_one_another(overheard: tuple[Job, list[Exchange]]) -> None:
    job, exchanges = overheard
    marks = {mark for exchange in exchanges for mark in exchange.update[ADAPTERS].towers.values()}
    assert {mark.partition("-")[0] for mark in marks} == {"tiny", "small"}
    result = read_metrics(job.run_dir)[-1]
    weights = torch.tensor(result["strategy"]["relevance"]["weights"])
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    last = [exchange for exchange in exchanges if exchange.task.kind == "evaluate"][-3:]
    for exchange in last:
        merged = {name: value for name, value in exchange.down.items() if name.startswith("module/")}
        assert any(bool(value.any()) for name, value in merged.items() if name.endswith(".P"))


def test_every_persons_router_weighs_the_own_view_too(overheard: tuple[Job, list[Exchange]]) -> None:
    people = 0
    for folder in overheard[0].devices:
        personal = Personal.open(folder)
        assert personal.task.views == NAMES
        for user, weights in personal.weights().items():
            assert len(weights) == len(NAMES)
            assert sum(weights) == pytest.approx(1, abs=1e-6)
            assert min(weights) > 0
            items, reliance = personal.recommend(user, 5)
            assert len(items) == 5
            assert {item.view for item in items} <= set(NAMES[1:])
            assert reliance["tower"] > 0
            assert sum(reliance.values()) == pytest.approx(1, abs=1e-5)
            people += 1
    assert people == USERS


def test_the_own_view_counts_in_the_evaluation(
    overheard: tuple[Job, list[Exchange]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that loses its adapter ranks otherwise: what was reported is what is recommended."""
    job, _ = overheard
    personal = Personal.open(job.devices[0])
    user = personal.device.split(job.settings).users[0]
    told = [item.score for item in personal.recommend(user, 5)[0]]
    assert told == [item.score for item in Personal.open(job.devices[0]).recommend(user, 5)[0]]
    load = Store.load
    monkeypatch.setattr(
        Store, "load", lambda store, *given: None if store.folder.name == "tower" else load(store, *given)
    )
    assert told != [item.score for item in Personal.open(job.devices[0]).recommend(user, 5)[0]]


def test_resumed_equals_undisturbed_bit_for_bit(dataset: Path, tmp_path: Path) -> None:
    def interrupt(line: Record) -> None:
        if isinstance(line, RoundRecord) and line.round == 2:
            raise KeyboardInterrupt

    inline.execute(people_job(dataset, tmp_path / "whole", rounds=4), silent)
    with pytest.raises(KeyboardInterrupt):
        inline.execute(people_job(dataset, tmp_path / "parts", rounds=4), interrupt)
    inline.execute(people_job(dataset, tmp_path / "parts", rounds=4, resume=True), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "parts")
    whole, parts = adapters(tmp_path / "whole"), adapters(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert len(whole) == 2
    for device, tensors in whole.items():
        assert all(torch.equal(value, parts[device][name]) for name, value in tensors.items())


def test_folders_dealt_by_hand_are_those_of_a_run(dataset: Path, tmp_path: Path) -> None:
    config = tmp_path / "both.yaml"
    config.write_text(people_settings().model_dump_json())
    result = CliRunner().invoke(
        app, ["partition", str(dataset), str(tmp_path / "hand"), "--nodes", "2", "--config", str(config)]
    )
    assert result.exception is None
    job = people_job(dataset, tmp_path / "run", 2)
    for by_hand, own in zip(sorted((tmp_path / "hand").iterdir()), job.devices, strict=True):
        files = {path.relative_to(own): path.read_bytes() for path in own.rglob("*") if path.is_file()}
        assert {path.relative_to(by_hand): path.read_bytes() for path in by_hand.rglob("*") if path.is_file()} == files
        assert RecommendationClient(by_hand).catalogue() == RecommendationClient(own).catalogue()


def test_without_towers_nothing_is_dealt(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tessera towers fit"):
        people_job(people_without(dataset, tmp_path / "bare"), tmp_path / "run")
    assert not (tmp_path / "run" / "devices").exists()


def people_without(dataset: Path, folder: Path) -> Path:
    """The same dataset without towers."""
    load_catalogue(dataset).save(folder)
    (folder / "interactions.parquet").write_bytes((dataset / "interactions.parquet").read_bytes())
    return folder
