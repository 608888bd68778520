"""A run that is asked to end does so between two rounds, with all of them saved, and goes on as if it had not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.common.errors import RunStopped
from tessera.deploy.executors import inline
from tessera.server.live import stopping
from tests.deploy.test_continue import tensors
from tests.support.catalogues import small_job
from tests.support.metrics import read_metrics


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """Stopped in round 3, after its evaluation of round 2 and before the next checkpoint would be due."""
    federation = {"checkpoint_every": 20}
    whole = small_job(tmp_path, "whole", rounds=6, federation=federation)
    inline.execute(whole, lambda line: None)
    job = small_job(tmp_path, "cut", rounds=6, federation=federation)

    def listen(line: Any) -> None:
        if line.kind == "round" and line.round == 3:
            stopping.ask(job.run_dir)

    with pytest.raises(RunStopped, match="stopped from outside; go on with --resume"):
        inline.execute(job, listen)
    assert (job.run_dir / "checkpoints" / "round-000003.safetensors").exists()
    inline.execute(small_job(tmp_path, "cut", resume=True, rounds=6, federation=federation), lambda line: None)
    assert not (job.run_dir / stopping.FILE).exists()
    for name, value in tensors(whole.run_dir, 6).items():
        assert torch.equal(tensors(job.run_dir, 6)[name], value), name
    lines = [[line for line in read_metrics(run) if line["kind"] != "result"] for run in (whole.run_dir, job.run_dir)]
    kinds = [[(line["kind"], line.get("round"), line.get("scores")) for line in one] for one in lines]
    assert kinds[0] == kinds[1]
