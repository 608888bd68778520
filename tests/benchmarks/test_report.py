"""A report says what a run's own files say, loads nothing, and is about single people in distributions alone."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tessera.benchmarks.cli import report
from tessera.benchmarks.harness.runner import run_bench
from tessera.benchmarks.harness.spec import BenchSpec
from tessera.benchmarks.report.figures import alikeness
from tessera.benchmarks.report.write import write_report
from tessera.client.people.device import Device
from tessera.common.errors import DataError
from tessera.deploy.api.result import Result
from tessera.deploy.executors.inline import execute
from tests.support.catalogues import small_dataset, small_job
from tests.support.qa_devices import qa_dataset, qa_job


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of the small dataset, the second of another rate."""
    folder = tmp_path_factory.mktemp("report")
    small_dataset(folder / "small")
    for name, rate in (("first", 0.01), ("second", 0.1)):
        execute(small_job(folder, name, server={"learning_rate": rate}), lambda line: None)
    return folder


def written(folders: list[Path], out: Path) -> str:
    done = CliRunner().invoke(report, [*map(str, folders), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out.read_text()


def pictures(page: str) -> list[str]:
    """The SVG in it."""
    return [base64.b64decode(one).decode() for one in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]


def test_a_run_s_report_has_its_figures_and_loads_nothing(world: Path, tmp_path: Path) -> None:
    page, result = written([world / "first"], tmp_path / "out.html"), Result.load(world / "first")
    assert f"{result.scores['test/all/ndcg@50']:.2f}" in page
    for baseline in result.baselines:
        assert f">{baseline}<" in page
    assert result.record.sentence() in page
    assert "server.learning_rate" in page
    assert len(pictures(page)) == 4  # curves, who is served, routers, how alike the views are
    for text in (page, *pictures(page)):
        assert not re.search(r"(?:src|href|action)=\"(?!data:|#)", text)
        assert "<script" not in text
    for device in result.devices:
        for person in Device.open(device).people():
            assert not any(person.user in text for text in (re.sub(r"base64,[^\"]+", "", page), *pictures(page)))


def test_runs_side_by_side_show_what_differs(world: Path, tmp_path: Path) -> None:
    page = written([world / "first", world / "second"], tmp_path / "out.html")
    differing = page[page.index("Settings in which the runs differ") :]
    assert "server.learning_rate" in differing
    assert "local.backbone.name" not in differing
    assert "first" in pictures(page)[0]


def test_a_grid_s_report_has_its_tables_and_its_differences(world: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    base = {"data": {"folder": "small"}, "rounds": 1, "views": {"dim": 8, "id_dim": 8}, "evaluation": {"every": 1}}
    methods = {"ours": {"local": {"backbone": "history"}}, "theirs": {"local": {"backbone": "fedavg", "loss": "bce"}}}
    grid.write_text(str({"name": "grid", "base": base, "methods": methods, "seeds": [0], "reference": "ours"}))
    outcome = run_bench(BenchSpec.load(grid), world, tmp_path / "runs", lambda line: None)
    page = written([tmp_path / "runs" / "grid"], tmp_path / "out.html")
    row = outcome.table.filter(method="theirs")
    assert f"{row['test/all/hr@50'][0]:.2f}" in page
    assert "theirs - ours" in pictures(page)[0]


def test_devices_that_answer_questions_are_reported_by_accuracy(tmp_path: Path) -> None:
    job = qa_job(qa_dataset(tmp_path / "questions"), tmp_path / "run")
    execute(job, lambda line: None)
    page = written([job.run_dir], tmp_path / "out.html")
    assert "Accuracy, in %" in page
    assert "Who learns from whom" in page


def test_what_is_no_run_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing holds no run"):
        write_report([tmp_path / "nothing"], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_alike_views_are_those_that_differ_by_a_rotation() -> None:
    view = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    turned = 3 * view @ torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).Q + 5
    other = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    found = alikeness(torch.stack([view, turned, other]))
    assert np.allclose(found, found.T)
    assert found[0, :2] == pytest.approx([1, 1], abs=1e-5)
    assert found[0, 2] < 0.5
