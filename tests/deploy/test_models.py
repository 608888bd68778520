"""Federations of other people's models: encoders and language models of different size and family share P and Q."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tessera.common.data.text_questions import TextQuestions
from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.models.base import STACK
from tessera.common.towers.models.load import load_text_model
from tessera.deploy.executors import inline
from tessera.deploy.executors.run import run_job
from tests.deploy.test_executors import silent
from tests.deploy.test_mosaic import came_down, overheard, sent_in
from tests.support.metrics import read_metrics
from tests.support.models import language_model, text_dataset, text_job, text_settings
from tests.support.qa_devices import naive_mix
from tests.support.small_towers import tiny_clip, tiny_text_tower


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two BERTs of different size, and an open_clip model."""
    folder = tmp_path_factory.mktemp("encoders")
    small, large = tiny_text_tower(folder / "small"), tiny_text_tower(folder / "large", width=32, layers=4, heads=4)
    return {"small_bert": str(small), "large_bert": str(large), "clip": tiny_clip(folder / "clip")}


@pytest.fixture(scope="module")
def language_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Llama, and a Qwen2 of another width and depth."""
    folder = tmp_path_factory.mktemp("lms")
    llama, qwen = language_model(folder / "llama"), language_model(folder / "qwen", "qwen2", width=48, layers=6)
    return {"llama": str(llama), "qwen": str(qwen)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_dataset(tmp_path_factory.mktemp("words") / "data")


def test_two_encoders_of_transformers_and_one_of_open_clip_share_p_and_q(
    tmp_path: Path, dataset: Path, encoders: dict[str, str]
) -> None:
    job = text_job(dataset, tmp_path / "run", encoders)
    exchanges = overheard(job)
    sent = sent_in(exchanges, 2)
    assert len({update.tower for update in sent.values()}) == 3
    places = [set(update.pq) for update in sent.values()]
    assert places[0] == places[1] == places[2]
    assert {name.partition(".")[0] for name in places[0]} == {STACK}
    for client, module in came_down(exchanges, "evaluate", 2).items():
        wanted = naive_mix(sent, client, relevant=True)
        assert module.keys() == wanted.keys()
        assert any(bool(value.any()) for name, value in module.items() if name.endswith(".P"))
        for name, value in module.items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-7)
    said = b"".join(exchange.raw for exchange in exchanges)
    for word in (b"colour of", b"red ring", str(encoders["small_bert"]).encode()):
        assert word not in said, "questions and the server's folders stay where they are"


@pytest.mark.integration
@pytest.mark.slow
def test_the_same_over_grpc(tmp_path: Path, dataset: Path, encoders: dict[str, str]) -> None:
    run_job(text_job(dataset, tmp_path / "grpc", encoders), "grpc", silent)
    lines = [line for line in read_metrics(tmp_path / "grpc") if line["kind"] == "round"]
    assert [line["nodes"] for line in lines] == [3, 3]


def test_language_models_of_two_families_learn_and_write(tmp_path: Path, language_models: dict[str, str]) -> None:
    data = text_dataset(tmp_path / "data", 2, written=True)
    job = text_job(data, tmp_path / "run", language_models, 2, rounds=3, mosaic={"steps": 30, "learning_rate": 0.01})
    exchanges = overheard(job)
    first, last = (
        {
            e.node: e.update.sums.mean("loss", "users")
            for e in exchanges
            if (e.task.kind, e.task.round) == ("train", round)
        }
        for round in (1, 3)
    )
    assert all(last[node] < first[node] for node in first)
    sums = [e.update.sums for e in exchanges if e.task.kind == "evaluate" and e.task.round == 3]
    assert all(0 < one["after/self-written/token-loss"] < 6 for one in sums)
    assert all(0 <= one["after/self-written/rouge-l"] <= 1 for one in sums)
    assert all(one["after/self/users"] == 1 for one in sums)


def test_the_choice_that_is_most_often_right_is_a_baseline(tmp_path: Path, language_models: dict[str, str]) -> None:
    """Of a device whose answers are all "red", it is right wherever red is offered and right."""
    data = text_dataset(tmp_path / "data", 1)
    for part, answers in (("train", ("red", "red", "blue")), ("test", ("red", "blue", "green", "red"))):
        lines = [
            ("colour", f"{part} {number}", ("blue", "green", "red"), one) for number, one in enumerate(answers * 9)
        ]
        TextQuestions.of(lines).save(data / "questions" / "client-00" / f"{part}.jsonl")
    job = text_job(data, tmp_path / "run", {"llama": language_models["llama"]}, 1, evaluation={"baselines": True})
    sums = next(e.update.sums for e in overheard(job) if e.task.kind == "baselines")
    assert sums["frequent/self/accuracy"] == pytest.approx(0.5)
    assert sums["chance/self/accuracy"] == pytest.approx(1 / 3)


@pytest.mark.integration
@pytest.mark.slow
def test_language_models_over_grpc_with_the_resident_node(tmp_path: Path, language_models: dict[str, str]) -> None:
    data = text_dataset(tmp_path / "data", 2, written=True)
    grpc, again = (text_job(data, tmp_path / name, language_models, 2) for name in ("grpc", "inline"))
    run_job(grpc, "grpc", silent)
    lines = [line for line in read_metrics(grpc.run_dir) if line["kind"] == "round"]
    assert [line["nodes"] for line in lines] == [2, 2]
    inline.execute(again, silent)
    losses = [[line["loss"] for line in read_metrics(job.run_dir) if line["kind"] == "round"] for job in (grpc, again)]
    assert losses[0][0] > 0
    assert len(losses[0]) == len(losses[1])


def test_a_model_that_sees_pictures_too_is_asked_in_words(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "llava", "llava")
    model = load_text_model(folder)
    assert "language_model" in model.stacks[STACK]
    places = placement(model, model.stacks, 2)[1]
    assert {place.rpartition(".")[2] for place in places.values()} == {"v_proj", "out_proj", "gate", "c_fc", "c_proj"}
    data = text_dataset(tmp_path / "data", 1, written=True)
    overheard(text_job(data, tmp_path / "run", {"seeing": str(folder)}, 1, rounds=1))


def spoilt(folder: Path, tmp_path: Path, how: str) -> Path:
    """A copy of a model's folder with something wrong."""
    copy = Path(shutil.copytree(folder, tmp_path / how))
    if how == "no-weights":
        (copy / "model.safetensors").unlink()
    elif how == "no-tokenizer":
        for path in copy.glob("tokenizer*"):
            path.unlink()
    elif how == "other-tokenizer":
        config = json.loads((copy / "config.json").read_text())
        from safetensors.torch import load_file, save_file

        tensors = load_file(copy / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:100].clone()
        save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        (copy / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    elif how == "deeper":
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    return copy


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("no-weights", "no weights as safetensors"),
        ("no-tokenizer", "has no tokenizer"),
        ("other-tokenizer", "has 257 tokens, its model knows 100: they do not belong together"),
        ("deeper", r"lack model\.layers\.4\..* and \d+ more: they are of another model"),
    ],
)
def test_what_is_no_whole_model_is_refused_by_name(
    tmp_path: Path, language_models: dict[str, str], how: str, why: str
) -> None:
    data = text_dataset(tmp_path / "data", 1)
    broken = spoilt(Path(language_models["llama"]), tmp_path, how)
    with pytest.raises(DataError, match=why):
        text_job(data, tmp_path / "run", {"broken": str(broken)}, 1)


def test_questions_to_be_answered_in_words_are_refused_by_an_encoder(tmp_path: Path, encoders: dict[str, str]) -> None:
    model = load_text_model(Path(encoders["small_bert"]))
    with pytest.raises(DataError, match="compares texts and cannot write: the task 'tell'"):
        model.read(TextQuestions.of([("tell", "tell of it", (), "a thing")]))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"mosaic": {"classes": ["tiny"]}}, "a tower of size tiny reads features, no words"),
        ({"mosaic": {"classes": ["other"]}}, "there is no device class 'other'; known are tiny, small, base, mine"),
        (
            {"data": {"folder": "x", "kind": "questions"}},
            "the model 'mine' reads words: set data.kind to text-questions",
        ),
    ],
)
def test_classes_that_are_not_there_are_refused(changes: dict, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        text_settings({"mine": "models/mine"}, **changes)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(DataError, match="there is no folder 'models/none' with a model"):
        text_job(dataset, tmp_path / "run", {"none": "models/none"}, 1)
