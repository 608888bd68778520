"""Trackers are told what a run's own metrics say, read back by the trackers' own tools."""

import logging
import re
import shutil
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tessera.common.errors import ConfigError, RunError
from tessera.common.metrics.records import EvaluationRecord, RoundRecord, read_records
from tessera.deploy.executors import inline
from tessera.deploy.job import Job
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_job

FILES = ["tensorboard", "mlflow"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that TensorBoard and MLflow are told of, interrupted after two of its four rounds and resumed."""
    folder = tmp_path_factory.mktemp("tracked")
    inline.execute(small_job(folder, tracking=FILES, rounds=2), silent)
    job = small_job(folder, resume=True, tracking=FILES, rounds=4)
    inline.execute(job, silent)
    return job


def rounds(job: Job) -> dict[int, float]:
    return {line.round: line.loss or 0.0 for line in read_records(job.run_dir) if isinstance(line, RoundRecord)}


def test_tensorboard_reads_every_round_once(job: Job) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(job.run_dir / "tensorboard"))
    found.Reload()
    losses = {event.step: event.value for event in found.Scalars("round/loss")}
    assert losses == pytest.approx(rounds(job), rel=1e-5)
    last = [line for line in read_records(job.run_dir) if isinstance(line, EvaluationRecord)][-1]
    for name, value in last.scores.items():
        if not name.counts:
            assert found.Scalars(str(name))[-1].value == pytest.approx(value, rel=1e-5)
    assert "backbone" in str(found.Tensors("settings/text_summary")[0])


def test_mlflow_has_settings_figures_and_files_of_one_run(job: Job) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(job.run_dir.parent / "mlruns").as_uri())
    (experiment,) = (one for one in client.search_experiments() if one.name == "tessera")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["local.backbone.name"] == job.settings.local.backbone.name
    history = {one.step: one.value for one in client.get_metric_history(run.info.run_id, "round/loss")}
    assert history == pytest.approx(rounds(job), rel=1e-5)
    assert "validation/all/ndcg_at_50" in run.data.metrics
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {"config.yaml", "metrics.jsonl"}


def test_prometheus_scrapes_a_run_that_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tessera.server")
    scraped: list[str] = []
    job = small_job(tmp_path, tracking=["prometheus"])

    def scrape(line: object) -> None:
        if isinstance(line, RoundRecord) and line.round > 1:
            address = re.search(r"http://127\.0\.0\.1:\d+/metrics", caplog.text)
            assert address
            scraped.append(httpx.get(address.group()).text)

    inline.execute(job, scrape)
    last = max(rounds(job))
    assert f'tessera_round{{run="{job.settings.name}"}} {last}.0' in scraped[-1]
    assert re.search(r'tessera_score\{group="all",k="50",metric="ndcg",part="validation",run="\w+"\} \d', scraped[-1])
    assert not [one for one in threading.enumerate() if "http" in one.name.lower()]


def test_a_tracker_that_fails_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "kept").as_uri())
    job = small_job(tmp_path, tracking=["mlflow"])
    inline.execute(job, lambda line: shutil.rmtree(tmp_path / "kept", ignore_errors=True))
    assert "MLflow is told no more of this run" in caplog.text
    assert max(rounds(job)) == job.settings.rounds


def test_what_is_not_installed_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.delitem(sys.modules, "tessera.server.tracking.mlflow", raising=False)
    with pytest.raises(
        (ConfigError, RunError), match=r"mlflow needs a package that is not installed .*tessera\[tracking\]"
    ):
        inline.execute(small_job(tmp_path, tracking=["mlflow"]), silent)
