"""What settings of FedMosaic change of a run: what leaves a device, what its own branch begins with, what it learns from."""

from pathlib import Path

import pytest
import torch

from tessera.client.methods import LocalTraining
from tessera.client.methods.base import learnt
from tessera.client.methods.fedmosaic import FedMosaic
from tessera.client.private_state import Store
from tessera.client.qa_client import _equip
from tessera.common.config.device import DeviceSettings
from tessera.common.config.settings import TOWER_DIM
from tests.deploy.test_mosaic import N_KEPT, came_down, overheard, sent_in
from tests.support.qa_devices import qa_dataset, qa_job


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qa_dataset(tmp_path_factory.mktemp("qa") / "data")


PAPER = {
    "schedule": "constant",
    "signature": {"limit": 0},
    "method": {"queries_and_keys": True, "gate_per": "layer", "alignment": "random", "include_self": True},
}
PAPER["method"] |= {"union": False, "shared_rounds": 0, "gate_by_instruction": False}  # type: ignore[operator]


@pytest.mark.parametrize(
    ("mosaic", "parts"),
    [
        ({"share": "pq"}, {"P": 8, "Q": 8}),
        ({"method": {"name": "pq", "blocks": 0}}, {"A": 24, "B": 24}),
        (PAPER, {"P": 12, "Q": 12, "A": 12, "B": 12}),
        ({"share": "pq", "signature": {"kept": 1.0, "of": "own", "every": 1}}, {"P": 8, "Q": 8}),
    ],
    ids=["p-and-q-alone", "class-average", "paper", "by-the-answers"],
)
def test_settings_say_what_leaves_a_device(tmp_path: Path, dataset: Path, mosaic: dict, parts: dict[str, int]) -> None:
    """Four layers of six linears, two of them with P and Q: what is said to travel does, both ways, and nothing else."""
    job = qa_job(dataset, tmp_path / "run", 4, rounds=2, mosaic=mosaic)
    exchanges = overheard(job)
    size = {True: TOWER_DIM, False: N_KEPT}[mosaic.get("signature", {}).get("of") == "own"]
    for client, sent in sent_in(exchanges, 2).items():
        names = [name.rpartition(".")[2] for name in (*sent.pq, *sent.lora)]
        assert {part: names.count(part) for part in dict.fromkeys(names)} == parts
        assert len(sent.signature) == (size if job.settings.mosaic.method.name == "fedmosaic" else 0)
        assert came_down(exchanges, "evaluate", 2)[client].keys() == {*sent.pq, *sent.lora}
    kept = Store(next((job.devices[0] / "private").iterdir())).load(0, before=10**6)
    assert kept is not None
    betas = torch.cat([value for name, value in kept.parameters.items() if name.startswith("gate/")])
    assert len(betas) == 24
    assert len(set(betas.tolist())) == (4 if mosaic is PAPER else 24)


def test_the_own_branch_begins_shared_rounds_from_what_came_down_and_no_later_one(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same: list[bool] = []

    def spy(method: FedMosaic, local_training: LocalTraining) -> float:
        branches = [learnt(local_training.model, branch) for branch in ("local", "global")]
        same.append(all(torch.equal(*pair) for pair in zip(*branches, strict=True)))
        return plain(method, local_training)

    plain = FedMosaic.train
    monkeypatch.setattr(FedMosaic, "train", spy)
    overheard(qa_job(dataset, tmp_path / "run", 2, rounds=4))
    assert same == [True] * 2 * 2 + [False] * 2 * 2, "in the first round both are the start"


def test_short_data_are_some_of_the_own_questions(tmp_path: Path, dataset: Path) -> None:
    job = qa_job(dataset, tmp_path / "run", 1, rounds=1, mosaic={"questions": 30})
    told = DeviceSettings.of(job.settings).mosaic
    own = _equip(job.devices[0], told, 0, torch.device("cpu"))
    every = _equip(job.devices[0], told.model_copy(update={"questions": 0}), 0, torch.device("cpu"))
    assert len(own.train) == 30
    assert len(every.train) > 200
    asked = {tuple(row) for row in every.train.pieces.flatten(1).tolist()}
    assert {tuple(row) for row in own.train.pieces.flatten(1).tolist()} <= asked
    assert torch.equal(own.tests["validation"].questions.pieces, every.tests["validation"].questions.pieces)
