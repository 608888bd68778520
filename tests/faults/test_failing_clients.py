"""Clients that fail at random, a third of them in every round."""

from pathlib import Path

import pytest

from tessera.benchmarks.failures import Failing
from tessera.deploy.executors import inline
from tessera.server.app import serve
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics

pytestmark = pytest.mark.faults


def test_all_of_a_hundred_rounds_complete_and_little_is_lost(tmp_path: Path) -> None:
    """With 30% of ten nodes failing in each: rounds go on with the rest, and everybody still learns."""
    changes = {"rounds": 100, "planted": True, "federation": {"min_fraction": 0.3, "checkpoint_every": 20}}
    whole = small_job(tmp_path, "whole", 10, **changes)
    inline.execute(whole, silent)
    job = small_job(tmp_path, "failing", 10, **changes)
    grid = Failing(job.devices[0].parent, 10, share=0.3, seed=0)
    serve(grid, job.settings, job.catalogue, job.run_dir, resume=False)
    rounds = [line for line in read_metrics(job.run_dir) if line["kind"] == "round"]
    assert [line["round"] for line in rounds] == list(range(1, 101))
    lost = sum(line.get("dropped", {}).get("failed", 0) for line in rounds)
    assert 250 < lost < 350
    name = "validation/all/ndcg@50"
    mine, undisturbed = (read_metrics(run)[-1]["scores"][name] for run in (job.run_dir, whole.run_dir))
    assert mine == pytest.approx(undisturbed, rel=0.1), "40 people; benchmarks/failures.py measures it on 610"
