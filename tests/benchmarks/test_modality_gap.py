"""How far apart two modalities lie, and what people's own tables change of it."""

from pathlib import Path

import pytest
import torch

from tessera.benchmarks.modality_gap import gap, learnt, summary
from tessera.deploy.executors.inline import execute
from tests.support.catalogues import small_dataset, small_job


def test_the_gap_knows_directions_alone() -> None:
    one = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert float(gap(one, 3 * one)) == pytest.approx(0, abs=1e-6)
    east = torch.eye(2)[:1].expand(5, 2)
    assert float(gap(east, -east)) == pytest.approx(2)
    assert torch.equal(gap(one.expand(3, 40, 8), one), torch.zeros(3))


def test_a_run_s_gap_is_that_of_its_people(tmp_path: Path) -> None:
    small_dataset(tmp_path / "small")
    job = small_job(tmp_path, "run", local={"backbone": "fedrap", "loss": "bce"})
    execute(job, lambda line: None)
    views, tables = learnt(job.devices[0])
    found = summary(views, tables)
    assert tables.shape[1:] == views["id"].shape
    for content, row in found.items():
        everybody = [float(gap(views["id"] + own, views[content])) for own in tables]
        assert row["median"] == pytest.approx(torch.tensor(everybody).quantile(0.5).item(), abs=1e-4)
        assert row["common"] == pytest.approx(float(gap(views["id"], views[content])), abs=1e-4)
