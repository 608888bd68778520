"""A pretrained encoder learns in a run from words to the result: encoded once, read anew in each round, resumed bit for bit."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.common.data.catalogue import load_catalogue
from tessera.common.datasets.encode import encode_dataset
from tessera.common.encoders.huggingface import HuggingFaceEncoder
from tessera.deploy.executors import inline
from tessera.deploy.executors.grpc import execute
from tests.deploy.test_executors import assert_bitwise, silent
from tests.support.catalogues import small_dataset, small_job
from tests.support.metrics import read_metrics
from tests.support.small_towers import tiny_text_tower

MODELS = Path(os.environ.get("TESSERA_MODELS", "none"))
"""Where encoders with real weights lie, such as all-MiniLM-L6-v2; a random one of its shape stands in for it otherwise."""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    real = MODELS / "all-MiniLM-L6-v2"
    if real.is_dir():
        return real
    return tiny_text_tower(tmp_path_factory.mktemp("models") / "minilm", width=384, layers=6, heads=12, spread=0.05)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_minilm_learns_from_overviews_and_a_resumed_run_draws_the_same_items(
    kind: str, tower: Path, tmp_path: Path
) -> None:
    dataset = small_dataset(tmp_path / "small")
    catalogue = load_catalogue(dataset)
    overviews = tuple(f"a film about {item} and number {row}" for row, item in enumerate(catalogue.items))
    replace(catalogue, texts=overviews).save(dataset)
    (dataset / "dataset.json").write_text(json.dumps({"kind": "movielens"}))
    assert encode_dataset(dataset, HuggingFaceEncoder(str(tower)), lambda *about: lambda step: None) == ("text",)
    changes: dict[str, Any] = {
        "views": {
            "dim": 8,
            "operators": [],
            "item_ids": False,
            "encoder": {"name": kind, "tower": str(tower), "tokens": 8, "share": 0.5},
        },
        "local": {"backbone": "cosine", "loss": "softmax", "history_mask": 0.0},
        "server": {"learning_rate": 0.002},
    }
    inline.execute(small_job(tmp_path, "whole", 2, rounds=3, **changes), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=2, **changes), silent)
    inline.execute(small_job(tmp_path, "parts", 2, rounds=3, resume=True, **changes), silent)
    assert_bitwise(tmp_path / "whole", tmp_path / "parts")
    losses = [line["loss"] for line in read_metrics(tmp_path / "whole") if line["kind"] == "round"]
    assert losses[-1] < losses[0]
    assert torch.isfinite(torch.tensor(losses)).all()


@pytest.mark.integration
@pytest.mark.slow  # test_secure_runs has it in one process
def test_contents_alone_over_grpc_and_under_masks_give_the_figures_of_a_plain_run(tmp_path: Path) -> None:
    """Ten rounds of encoders that learn, from three devices that are processes of their own and whose sums are masked."""
    changes: dict[str, Any] = {
        "rounds": 10,
        "planted": True,
        "views": {"dim": 8, "operators": [], "item_ids": False, "encoder": "bottleneck", "spectral_rounds": 5},
        "local": {"backbone": "cosine", "loss": "next", "history_mask": 0.0},
        "evaluation": {"every": 5, "collapse": True},
        "server": {"learning_rate": 0.003},
    }
    inline.execute(small_job(tmp_path, "plain", 3, privacy={"secure": False}, **changes), silent)
    execute(small_job(tmp_path, "grpc", 3, privacy={"secure": True}, **changes), silent)
    plain, masked = read_metrics(tmp_path / "plain"), read_metrics(tmp_path / "grpc")
    assert [line["kind"] for line in plain] == [line["kind"] for line in masked]
    for one, other in zip(plain, masked, strict=True):
        assert other.get("loss", 0.0) == pytest.approx(one.get("loss", 0.0), rel=1e-3)
        assert other.get("scores", {}) == pytest.approx(one.get("scores", {}), rel=1e-3, abs=1e-9)
