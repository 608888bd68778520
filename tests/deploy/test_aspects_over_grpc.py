"""Sides that people go by, over real processes: a server and three devices find them from sums under masks, to the end."""

from pathlib import Path

import polars as pl
import pytest
import torch

from tessera.benchmarks.aspects_rounds import SETTINGS, purity
from tessera.common.config.loading import load_settings
from tessera.common.datasets import convert_aspects_shop
from tessera.common.metrics.records import ResultRecord
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.job import Job
from tests.deploy.test_executors import last_checkpoint, silent
from tests.support.metrics import read_metrics

CHANGES = (
    "rounds=1",
    "privacy.secure=true",
    "evaluation.baselines=false",
    "server.optimizer=sgd",
    "federation.nodes=3",
    "views.facet_steps=8",
)


@pytest.mark.integration
@pytest.mark.slow
def test_over_grpc_and_under_masks_sides_are_found_and_gates_rank_as_in_one_process(tmp_path: Path) -> None:
    convert_aspects_shop(tmp_path / "shop", people=400, seed=2)

    def run(executor: str) -> tuple[Job, ResultRecord]:
        settings = load_settings(SETTINGS, executor, CHANGES)
        job = make_job(settings, tmp_path / "shop", tmp_path / executor, resume=False, overwrite=False)
        return job, run_job(job, executor, silent)

    (apart, found), (together, wanted) = run("grpc"), run("inline")
    assert found.scores == pytest.approx(wanted.scores, rel=1e-3)
    for name, value in last_checkpoint(together.run_dir).items():
        torch.testing.assert_close(last_checkpoint(apart.run_dir)[name], value, rtol=2e-3, atol=2e-3)
    assert purity(apart, pl.read_parquet(tmp_path / "shop" / "users.parquet"))["purity"] >= 0.95
    assert read_metrics(apart.run_dir)[0]["groups"] == 1, "the sums were of all devices, under masks"
