"""A language model is cut to a device's size, and learns on public texts what the whole one computed."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.models.folder import take_model
from tessera.common.towers.models.load import MODEL, load_text_model
from tessera.deploy.cli.towers import app
from tessera.server.pretraining.pruning import prune, spread
from tessera.server.pretraining.text_alignment import public_texts
from tests.support.models import language_model, text_dataset
from tests.support.small_towers import tiny_text_tower


def nothing() -> None:
    """Nobody watches."""


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_what_is_cut_is_a_model_that_learns_to_do_what_the_whole_did(tmp_path: Path, family: str) -> None:
    texts = public_texts(text_dataset(tmp_path / "data"), None) * 2
    whole = language_model(tmp_path / "whole", family, layers=6)
    made = prune(whole, tmp_path / "small", 3, texts, 40, nothing)
    assert made.blocks == (6, 3)
    before, cut, taught = made.loss
    assert abs(taught - before) < abs(cut - before)
    small, tensors = load_text_model(tmp_path / "small"), load_file(whole / "model.safetensors")
    assert small.model.config.num_hidden_layers == 3  # type: ignore[union-attr]
    assert torch.equal(small.get_parameter("model.model.embed_tokens.weight"), tensors["model.embed_tokens.weight"])
    again = prune(whole, tmp_path / "again", 3, texts, 40, nothing)
    assert again == made
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "small/model.safetensors").read_bytes()


def test_what_is_only_cut_has_the_kept_blocks_as_they_were(tmp_path: Path) -> None:
    whole = language_model(tmp_path / "whole", layers=5)
    made = prune(whole, tmp_path / "small", 2, [], 9, nothing)
    assert all(math.isnan(loss) for loss in made.loss)
    own, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "small", whole))
    for name in ("self_attn.q_proj.weight", "mlp.down_proj.weight"):
        assert torch.equal(own[f"model.layers.1.{name}"], theirs[f"model.layers.4.{name}"])
    assert spread(30, 4) == [0, 10, 19, 29]


def test_what_a_model_says_block_by_block_goes_with_the_blocks(tmp_path: Path) -> None:
    """SmolLM3 has blocks that know nothing of places: every fourth one."""
    whole = language_model(tmp_path / "whole", "smollm3", layers=5)
    prune(whole, tmp_path / "small", 3, [], 9, nothing)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (whole, tmp_path / "small")]
    assert configs[0]["no_rope_layers"] == [1, 1, 1, 0, 1]
    for name in ("no_rope_layers", "layer_types"):
        assert configs[1][name] == [configs[0][name][block] for block in (0, 2, 4)]


def test_what_cannot_be_cut_is_refused_by_name(tmp_path: Path) -> None:
    whole, encoder = language_model(tmp_path / "whole"), tiny_text_tower(tmp_path / "bert")
    with pytest.raises(ConfigError, match="4 layers: the model has 4, keep 2 to 3"):
        prune(whole, tmp_path / "small", 4, [], 2, nothing)
    with pytest.raises(ConfigError, match="is no language model: only those can be cut"):
        prune(Path(encoder), tmp_path / "small", 2, [], 2, nothing)
    with pytest.raises(DataError, match="5 texts are too few to teach a model on: 37 are needed"):
        prune(whole, tmp_path / "small", 2, [["a", "word"]] * 5, 2, nothing)
    with pytest.raises(DataError, match="is there already"):
        prune(whole, whole, 2, [], 2, nothing)


def test_the_command_shows_what_was_lost_and_regained(tmp_path: Path) -> None:
    whole, data = language_model(tmp_path / "whole"), text_dataset(tmp_path / "data")
    options = ["--layers", "2", "--texts", str(data), "--steps", "3"]
    said = CliRunner().invoke(app, ["prune", str(whole), str(tmp_path / "small"), *options])
    assert said.exit_code == 0, said.output
    assert all(word in said.stdout for word in ("whole", "cut", "taught"))
    assert json.loads((tmp_path / "small" / "config.json").read_text())["num_hidden_layers"] == 2


def test_the_command_names_the_model_that_it_was_given_and_refuses_steps_that_teach_nothing(tmp_path: Path) -> None:
    encoder = tiny_text_tower(tmp_path / "bert")
    refused = CliRunner().invoke(app, ["prune", str(encoder), str(tmp_path / "small"), "--layers", "2"])
    assert "bert/model is no language model" in str(refused.exception)
    refused = CliRunner().invoke(app, ["prune", str(encoder), str(tmp_path / "small"), "--layers", "2", "--steps", "9"])
    assert "--steps has no effect: without --texts" in str(refused.exception)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("package:no_such_weights", "'no_such_weights', which should hold a model, is not installed"),
        ("package:email", "the Python package 'email' holds 0 models"),
        ("none.gguf", "there is no folder 'none.gguf' with a model"),
    ],
)
def test_a_model_that_is_not_there_is_named(tmp_path: Path, model: str, why: str) -> None:
    refused = CliRunner().invoke(app, ["prune", model, str(tmp_path / "small"), "--layers", "2"])
    assert why in str(refused.exception)


def test_the_model_that_an_installed_package_holds_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "some_weights"
    language_model(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('code of a package of weights is not run')")
    monkeypatch.syspath_prepend(tmp_path / "site")
    take_model("package:some_weights", tmp_path / "tower")
    assert load_text_model(tmp_path / "tower" / MODEL).writes


def test_a_gguf_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"no model")
    refused = CliRunner().invoke(app, ["prune", str(tmp_path / "model.gguf"), str(tmp_path / "small"), "--layers", "2"])
    assert isinstance(refused.exception, ConfigError | DataError)  # where gguf is not installed, and where it is
    assert "model.gguf" in str(refused.exception)
