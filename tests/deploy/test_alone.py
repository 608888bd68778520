"""What one person alone on a device receives and sends: the figure of a node with many is what such devices really exchange."""

from pathlib import Path
from typing import Any

import pytest

from tessera.common.metrics.records import ResultRecord, RoundRecord, read_records, read_result
from tessera.deploy.api.display import summary, traffic_line
from tessera.deploy.executors.run import make_job, run_job
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_dataset, small_settings

BCE = {"backbone": "fedavg", "loss": {"name": "bce", "negatives": 1}, "learning_rate": 0.01}
SETTINGS: dict[str, dict[str, Any]] = {
    "a softmax over the catalogue": {},
    "negatives that are drawn": {"local": BCE},
    "whole multiples of a step": {"wire": {"views": "int8", "gradients": "int8"}},
    "one direction of the views": {"wire": {"gradients": "int8", "explained": 0.6}},
    "noise": {"privacy": {"clip": 1.0, "noise_multiplier": 0.1, "secure": False}, "local": BCE},
}


def run(tmp_path: Path, users: int, nodes: int, rounds: int, **changes: Any) -> tuple[ResultRecord, list[RoundRecord]]:
    dataset = tmp_path / f"small-{users}"
    if not dataset.exists():
        small_dataset(dataset, users, 40)
    settings = small_settings(rounds=rounds, federation={"nodes": nodes}, **changes)
    job = make_job(settings, dataset, tmp_path / f"{users}-on-{nodes}", resume=False, overwrite=True)
    result = run_job(job, "inline", silent)
    assert read_result(job.run_dir) == result
    return result, [line for line in read_records(job.run_dir) if isinstance(line, RoundRecord)]


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_one_person_alone_exchanges_the_bytes_that_a_node_with_many_tells(tmp_path: Path, changes: dict) -> None:
    """The naive twin is a federation in which everybody has a device: what its nodes exchanged in the round that follows."""
    told, _ = run(tmp_path, 14, 1, 3, **changes)
    alone, rounds = run(tmp_path, 14, 14, 4, **changes)
    assert told.bytes_down_alone == rounds[-1].bytes_down_per_node
    assert told.bytes_up_alone == pytest.approx(rounds[-1].bytes_up_per_node, rel=1e-12)
    assert alone.bytes_up_alone == pytest.approx(told.bytes_up_alone, rel=0.2)
    assert told.bytes_up_alone > 1.5 * told.bytes_up_per_user
    assert summary(told)["bytes_up_alone"] == told.bytes_up_alone
    assert "for one person alone on a device" in traffic_line(told)


def test_under_masks_an_answer_is_as_long_whoever_is_behind_it(tmp_path: Path) -> None:
    masked = {"privacy": {"secure": True}}
    told, _ = run(tmp_path, 16, 4, 3, **masked)
    _, rounds = run(tmp_path, 4, 4, 3, **masked)
    assert (told.bytes_down_alone, told.bytes_up_alone) == (
        rounds[-1].bytes_down_per_node,
        rounds[-1].bytes_up_per_node,
    )
    assert told.bytes_up_alone == pytest.approx(4 * told.bytes_up_per_user, rel=0.2)
