"""A grid runs each method and seed once, chooses on validation, and goes on where it was."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from common.errors import ConfigError
from deploy.bench import RESULT, Bench, run_bench
from tests.worlds import small_dataset

BASE = {
    "data": {"folder": "small"},
    "rounds": 2,
    "views": {"dim": 8, "id_dim": 8},
    "evaluation": {"every": 2, "ks": [10]},
}
METHODS = {
    "history": {"local": {"backbone": "history"}, "choose": {"local.learning_rate": [0.001, 0.1]}},
    "fedavg-id": {"local": {"backbone": "fedavg", "loss": "bce"}, "views": {"operators": [], "modalities": []}},
}


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "grid.yaml"
    content = {"name": "grid", "base": BASE, "methods": METHODS, "seeds": [3, 4], "quick": {"rounds": 1}}
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def test_grid_runs_once_chooses_on_validation_and_resumes(tmp_path: Path) -> None:
    small_dataset(tmp_path / "small")
    grid, told = Bench.load(written(tmp_path)), []
    table = run_bench(grid, tmp_path, tmp_path / "runs", told.append)
    assert (
        len(told) == 2 + 1 + 2
    )  # two candidates with the first seed, the better one with the other seed, FedAvg twice
    tried = json.loads((tmp_path / "runs/grid/history/tried.json").read_text())
    best = max(tried["tried"], key=lambda one: one["validation"])
    assert tried["chosen"] == {"local.learning_rate": best["local.learning_rate"]}
    rows = table.filter(pl.col("method").is_in(["history", "fedavg-id"]))
    assert rows.select("method", "seed").rows() == [("history", 3), ("history", 4), ("fedavg-id", 3), ("fedavg-id", 4)]
    assert {"random", "popularity", "item-id"} <= set(table["method"])
    assert rows["private_parameters"].to_list() == [7 * 9 + 8] * 2 + [9 + 8 + 1] * 2
    assert pl.read_parquet(tmp_path / "runs/grid/results.parquet").equals(table)
    assert "| history | 2 |" in (tmp_path / "runs/grid/results.md").read_text()

    # One result is lost, as if the grid had been killed in that run: it alone is run again, with the same outcome.
    lost = next((tmp_path / "runs/grid/fedavg-id").glob(f"seed4/{RESULT}"))
    lost.unlink()
    told.clear()
    again = run_bench(grid, tmp_path, tmp_path / "runs", told.append)
    assert told == ["fedavg-id seed4"]
    scores = [name for name in table.columns if "/" in name]
    assert again.select(scores).equals(table.select(scores))

    # A method of the same name but other settings is another run.
    told.clear()
    changed = METHODS | {"fedavg-id": METHODS["fedavg-id"] | {"rounds": 3}}
    run_bench(Bench.load(written(tmp_path, methods=changed)), tmp_path, tmp_path / "runs", told.append)
    assert told == ["fedavg-id seed3", "fedavg-id seed4"]


def test_quick_settings_are_laid_over(tmp_path: Path) -> None:
    assert all(content["rounds"] == 1 for content in Bench.load(written(tmp_path), quick=True).methods.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'"),
        ({"seeds": []}, "'seeds' is missing"),
        ({"methods": {"x": {"local": {"backbone": "bert"}}}}, r"methods\.x: local\.backbone"),
    ],
)
def test_a_malformed_grid_is_refused_before_anything_runs(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bench.load(written(tmp_path, **changes))
