"""Learning from answers to public questions, on small towers: each method's round by hand, and what it comes to."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tessera.client.adapters.attach import attach, receive
from tessera.client.adapters.pq_lora import LOCAL
from tessera.client.methods import answer
from tessera.client.qa_dataset import QADataset
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import image_and_text, load_catalogue
from tessera.common.data.questions import divergence, surprise
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.adapters import AdapterUpdate
from tessera.common.registry.methods import FedMKTSettings, PerAdaSettings, TAKFLSettings
from tessera.common.towers.public_questions import PublicQuestions, public_path
from tessera.common.towers.qa_reader import QAReader
from tessera.deploy.provisioning.towers import align
from tessera.server.adapters.distillation import Distiller, Lessons, PublicTower, Tensors
from tessera.server.adapters.logit_sharing import LogitSharing, begin
from tessera.server.adapters.public_lessons import distiller
from tests.support.qa_devices import N_PUBLIC, RANK, qa_dataset, qa_settings, reader

LESSONS = Lessons(steps=6, batch=8, rate=2e-3, key=3)
LONGER = Lessons(steps=60, batch=16, rate=2e-3, key=3)
LAYERS = ["layers.0.mlp.c_fc", "layers.3.attn.out_proj", "layers.1.attn.q_proj"]
METHOD = {"name": "perada", "public_questions": 120}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qa_dataset(tmp_path_factory.mktemp("public") / "data")


@pytest.fixture(scope="module")
def public(dataset: Path) -> PublicQuestions:
    align(dataset, chosen())
    path = public_path(dataset / "towers" / "tiny", chosen().mosaic)
    assert path is not None
    return PublicQuestions.load(path)


@pytest.fixture(scope="module")
def towers(dataset: Path, public: PublicQuestions) -> dict[str, PublicTower]:
    image, text = image_and_text(load_catalogue(dataset))
    return {name: PublicTower.of(frozen(name), public, image, text) for name in ("tiny", "small")}


def chosen(**method: object) -> Settings:
    return qa_settings(mosaic={"method": {**METHOD, **method}})


@cache
def frozen(name: str) -> QAReader:
    return reader(name).eval().requires_grad_(requires_grad=False)


def lora(tower: PublicTower, seed: int) -> Tensors:
    """Some adapter of a few layers, which changes answers."""
    draws = torch.Generator().manual_seed(seed)
    found = {}
    for layer in LAYERS:
        d_out, d_in = tower.reader.get_parameter(f"{layer}.weight").shape
        found[f"{layer}.A"] = torch.randn(RANK, d_in, generator=draws) / d_in**0.5
        found[f"{layer}.B"] = torch.randn(d_out, RANK, generator=draws) / 2
    return found


def sent(towers: Mapping[str, PublicTower], *names: str) -> list[AdapterUpdate]:
    return [AdapterUpdate(name, {}, lora(towers[name], seed), torch.zeros(0)) for seed, name in enumerate(names)]


def averages(adapters: list[AdapterUpdate]) -> dict[str, Tensors]:
    by_tower: dict[str, list[Mapping[str, Tensor]]] = {}
    for one in adapters:
        by_tower.setdefault(one.tower, []).append(one.lora)
    return {
        tower: {name: torch.stack([one[name] for one in all_]).mean(0) for name in all_[0]}
        for tower, all_ in by_tower.items()
    }


def naive_fit(tower: PublicTower, start: Tensors, target: Tensor, held: Tensor | None, hold: float) -> Tensors:
    """One question after the other, on a reader whose weights are replaced, with the gradient of each A and B."""
    learnt = {name: nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = torch.optim.AdamW(learnt.values(), LESSONS.rate, weight_decay=0.0)
    for step in range(LESSONS.steps):
        optimizer.zero_grad()
        total = torch.zeros(())
        for row in LESSONS.rows(step, len(tower)).tolist():
            logits = tower.logits(learnt, torch.tensor([row]))[0]
            there = tower.offers[row]
            for wanted, weight in ((target, 1.0), *(((held, hold),) if held is not None else ())):
                known = wanted[row][there].softmax(0)
                apart = known * (known.log() - logits[there].log_softmax(0))
                total = total + weight * apart.sum() / LESSONS.batch
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value.detach() for name, value in learnt.items()}


def close(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=1e-4)  # of some 6 * 2e-3 that they move


def test_the_server_answers_as_a_device_with_that_adapter_does(
    dataset: Path, public: PublicQuestions, towers: dict[str, PublicTower]
) -> None:
    image, text = image_and_text(load_catalogue(dataset))
    bare = reader("small").eval()
    with torch.no_grad():
        shown = QADataset.offering(public.questions, public.offered, bare.embed_items(image, text))
    model = attach(bare, {"reader": "layers"}, RANK, lambda m: shown.vectors(m, torch.arange(8)), n_blocks=0)
    adapter = begin(towers["small"], sorted({n.rpartition(".")[0] for n in _names(model)}), RANK, seed=0)
    draws = torch.Generator().manual_seed(0)
    adapter = {name: value + 0.1 * torch.randn(value.shape, generator=draws) for name, value in adapter.items()}
    receive(model, adapter, LOCAL)
    theirs, ours = answer(model, shown, [LOCAL]), towers["small"].answer(adapter)
    assert not torch.allclose(ours, towers["small"].answer({}), atol=0.1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def _names(model: nn.Module) -> list[str]:
    from tessera.client.adapters.attach import lora_tensors

    return list(lora_tensors(model, LOCAL))  # type: ignore[arg-type]


def test_public_questions_are_about_public_items_alone_and_made_once(dataset: Path, public: PublicQuestions) -> None:
    shown = torch.cat([public.questions.pieces, public.questions.choices], 1)
    items = shown[..., 1][(shown[..., 0] > 0) & (shown[..., 0] < 3)]
    assert int(items.max()) < N_PUBLIC
    paths = [public_path(dataset / "towers" / name, chosen().mosaic) for name in ("tiny", "small")]
    assert paths[0] is not None
    assert paths[1] is not None
    content, written = paths[0].read_bytes(), paths[0].stat().st_mtime_ns
    align(dataset, chosen())
    assert paths[0].stat().st_mtime_ns == written
    paths[1].unlink()
    with pytest.raises(DataError, match=r"public-120\.safetensors does not exist: make it by"):
        distiller(chosen(), load_catalogue(dataset), dataset)
    align(dataset, chosen())
    assert paths[1].read_bytes() == content == paths[0].read_bytes()
    with pytest.raises(ConfigError, match="perada needs public questions, which there are none of in words"):
        qa_settings(
            data={"folder": "x", "kind": "text-questions"},
            mosaic={"classes": ["a"], "models": {"a": "models/a"}, "method": {"name": "perada"}},
        )


def test_perada_teaches_each_class_the_mean_of_all_answers(towers: dict[str, PublicTower]) -> None:
    adapters = sent(towers, "tiny", "small", "tiny")
    means = averages(adapters)
    taught = Distiller(towers, PerAdaSettings(name="perada"), LESSONS).taught(adapters, means)
    answers = [towers[one.tower].answer(one.lora) for one in adapters]
    teacher = (answers[0] + answers[1] + answers[2]) / 3
    for name in ("tiny", "small"):
        close(taught[name], naive_fit(towers[name], means[name], teacher, None, 0))
    nothing = Distiller(towers, PerAdaSettings(name="perada"), replace(LESSONS, steps=0)).taught(adapters, means)
    assert nothing == means, "no lesson: the average"


def test_takfl_teaches_each_classs_answers_apart_and_adds_what_that_changes(towers: dict[str, PublicTower]) -> None:
    adapters = sent(towers, "tiny", "small", "tiny")
    means = averages(adapters)
    settings = TAKFLSettings(name="takfl", self_regularisation=0.3)
    taught = Distiller(towers, settings, LESSONS).taught(adapters, means)
    answers = [towers[one.tower].answer(one.lora) for one in adapters]
    for name in ("tiny", "small"):
        held = towers[name].answer(means[name])
        learnt = [
            naive_fit(towers[name], means[name], teacher, held, 0.3)
            if name == "tiny" or teacher is not answers[1]
            else means["small"]  # whose only device has nothing to learn from itself
            for teacher in (answers[1], (answers[0] + answers[2]) / 2)
        ]
        close(taught[name], {part: (learnt[0][part] + learnt[1][part]) / 2 for part in means[name]})


def test_takfl_with_one_class_is_plain_distillation_of_the_ensemble(towers: dict[str, PublicTower]) -> None:
    adapters = sent(towers, "tiny", "tiny")
    means = averages(adapters)
    by_class = Distiller(towers, TAKFLSettings(name="takfl", self_regularisation=0), LESSONS).taught(adapters, means)
    plain = Distiller(towers, PerAdaSettings(name="perada"), LESSONS).taught(adapters, means)
    close(by_class["tiny"], plain["tiny"])


@pytest.mark.parametrize("settings", [PerAdaSettings(name="perada"), TAKFLSettings(name="takfl")])
def test_what_was_taught_answers_more_like_its_teachers(
    towers: dict[str, PublicTower], settings: PerAdaSettings | TAKFLSettings
) -> None:
    adapters = sent(towers, "tiny", "small", "tiny")
    means = averages(adapters)
    teacher = torch.stack([towers[one.tower].answer(one.lora) for one in adapters]).mean(0)
    taught = Distiller(towers, settings, LONGER).taught(adapters, means)
    for name in ("tiny", "small"):
        before, after = (float(divergence(teacher, towers[name].answer(one))) for one in (means[name], taught[name]))
        assert after < 0.8 * before, name


def test_fedmkts_server_learns_from_the_nearest_answers_where_they_beat_its_own(towers: dict[str, PublicTower]) -> None:
    """One round by hand."""
    tower, settings = towers["small"], FedMKTSettings(name="fedmkt", fine_tuning=0.4)
    start = begin(tower, LAYERS, RANK, seed=0)
    server = LogitSharing(tower, settings, LESSONS, start)
    told = {f"{n}": towers["tiny"].answer(lora(towers["tiny"], n)) for n in range(3)}
    server.learn({name: logits.masked_fill(logits == -torch.inf, 0) for name, logits in told.items()})

    def loss(row: int, logits: Tensor) -> Tensor:
        return -logits.log_softmax(0)[tower.answers[row]]

    own, learnt = tower.answer(start), {name: nn.Parameter(value.clone()) for name, value in start.items()}
    best = {
        row: min((said[row] for said in told.values()), key=lambda one: float(loss(row, one))) for row in range(120)
    }
    taken = {row for row, one in best.items() if loss(row, one) < loss(row, own[row])}
    assert 0 < len(taken) < 120
    optimizer = torch.optim.AdamW(learnt.values(), LESSONS.rate, weight_decay=0.0)
    for step in range(LESSONS.steps):
        optimizer.zero_grad()
        rows = LESSONS.rows(step, 120).tolist()
        among, total = [row for row in rows if row in taken], torch.zeros(())
        for row in rows:
            total = total + 0.4 * loss(row, tower.logits(learnt, torch.tensor([row]))[0]) / len(rows)
        for row in among:
            there = tower.offers[row]
            known = best[row][there].softmax(0)
            said = tower.logits(learnt, torch.tensor([row]))[0][there].log_softmax(0)
            total = total + 0.6 * (known * (known.log() - said)).sum() / len(among)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    close(server.lora, {name: value.detach() for name, value in learnt.items()})
    assert torch.equal(server.answers == 0, ~tower.offers)
    assert surprise(tower.answer(server.lora), tower.answers).mean() < surprise(own, tower.answers).mean()
