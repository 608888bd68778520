"""A bench on cold items or users: each seed has its own baselines, and nothing that saw what is held out stands beside."""

from pathlib import Path

import pytest
import yaml

from tessera.benchmarks.harness.runner import run_bench
from tessera.benchmarks.harness.spec import BenchSpec
from tests.support.catalogues import small_dataset


def test_each_seed_has_its_own_baselines_and_peers_are_left_out(tmp_path: Path) -> None:
    small_dataset(tmp_path / "small", 30)
    data = {"folder": "small", "cold_items": 0.2, "cold_users": 0.2}
    base = {"data": data, "rounds": 1, "views": {"dim": 8, "id_dim": 8}, "evaluation": {"every": 1, "ks": [10]}}
    grid = {"name": "grid", "base": base, "methods": {"history": {}}, "seeds": [0, 1], "baselines": ["itemknn"]}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    outcome = run_bench(BenchSpec.load(tmp_path / "grid.yaml"), tmp_path, tmp_path / "runs", lambda text: None)
    table = outcome.table
    random = table.filter(method="random")["test/all/hr@10"].to_list()
    assert len(random) == 2
    assert random[0] != random[1]
    for group in ("cold", "new-users", "new-users-untrained"):
        assert table.filter(method="history")[f"test/{group}/hr@10"].null_count() == 0
    assert table.filter(method="itemknn")["left_out"].to_list() == [
        "baselines are not fitted without cold items or cold users"
    ]
    # Person by person there are those who trained, whose mean is what is reported of all.
    quartiles = table.filter(method="history").select("^test/q[1-4]/(users|hr@10)$")
    for row, total in zip(quartiles.to_dicts(), table.filter(method="history")["test/all/hr@10"], strict=True):
        groups = [name for name in ("q1", "q2", "q3", "q4") if row.get(f"test/{name}/users")]
        people = sum(row[f"test/{name}/users"] for name in groups)
        mean = sum(row[f"test/{name}/users"] * row[f"test/{name}/hr@10"] for name in groups) / people
        assert mean == pytest.approx(total)
