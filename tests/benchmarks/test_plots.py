"""A picture shows the grid's own figures: what is drawn is read back from the axes."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

from tessera.benchmarks import plots
from tessera.benchmarks.harness.runner import run_bench
from tessera.benchmarks.harness.spec import BenchSpec
from tessera.client.recommend import Personal
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.executors.inline import execute
from tests.support.catalogues import small_dataset, small_job

HISTORY, FEDAVG = {"backbone": "history"}, {"backbone": "fedavg", "loss": "bce"}
GRIDS = {
    "operators": {
        "history-sum": {"local": HISTORY, "views": {"operators": ["sum"], "single": False, "dim": 8}},
        "history-all": {"local": HISTORY},
        "fedavg-all": {"local": FEDAVG},
    },
    "fraction": {"history-0.5": {"local": HISTORY, "fraction": 0.5}, "history-1.0": {"local": HISTORY}},
    "noise": {
        "plain": {"local": HISTORY},
        "noise-0.5": {"local": HISTORY, "privacy": {"clip": 1.0, "noise_multiplier": 0.5}},
    },
    "rates": {
        "fedavg": {
            "local": FEDAVG,
            "choose": {"server.learning_rate": [0.01, 0.1], "server.weight_decay": [0.0, 0.1, 1.0]},
        }
    },
    "fedrap": {
        "fedrap": {
            "local": {"backbone": {"name": "fedrap"}, "loss": "bce"},
            "choose": {
                "server.learning_rate": [0.01, 0.1],
                "local.backbone.difference_weight": [0.0, 0.1],
                "local.backbone.l1_weight": [0.0, 1.0],
            },
        }
    },
    "convergence": {"history": {"local": HISTORY}, "fedavg": {"local": FEDAVG}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plots")
    small_dataset(folder / "small")
    base = {"data": {"folder": "small"}, "rounds": 2, "evaluation": {"every": 2}, "views": {"dim": 8, "id_dim": 8}}
    for name, methods in GRIDS.items():
        path = folder / f"{name}.yaml"
        grid = {
            "name": f"small-{name}",
            "base": base,
            "methods": methods,
            "seeds": [0, 1] if name == "operators" else [0],
        }
        path.write_text(str(grid))
        run_bench(BenchSpec.load(path), folder, folder / "runs", lambda line: None)
    execute(small_job(folder, "runs/whole"), lambda line: None)
    return folder / "runs"


def test_every_grid_and_run_gets_a_small_picture(runs: Path, tmp_path: Path) -> None:
    plots.main(runs, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*(f"small-{name}.png" for name in GRIDS), "whole-router.png"}
    for name in names:
        assert (tmp_path / name).stat().st_size < 100_000
        pixels = np.asarray(Image.open(tmp_path / name).convert("L"))
        assert 0.01 < (pixels < 200).mean() < 0.6  # neither blank nor black
    with pytest.raises(DataError, match="neither grids nor runs"):
        plots.main(tmp_path.parent / tmp_path.name, tmp_path)


def test_bars_and_lines_are_means_of_the_seeds(runs: Path) -> None:
    for name, draw in (("operators", plots.bars), ("fraction", plots.fraction), ("noise", plots.noise)):
        table = pl.read_parquet(runs / f"small-{name}" / "results.parquet")
        means = {key: table.filter(pl.col("method") == key)[plots.METRIC].mean() for key in GRIDS[name]}
        drawn = []
        for axes in draw(runs / f"small-{name}").axes:
            drawn += [bar.get_width() for bar in axes.patches]
            lines = [container[0] for container in axes.containers if isinstance(container, ErrorbarContainer)]
            drawn += [value for line in lines if line is not None for value in line.get_ydata()]
        assert drawn == pytest.approx(list(means.values()))
    labels = [label.get_text() for label in plots.noise(runs / "small-noise").axes[0].get_xticklabels()]
    assert labels[0] == "none"
    assert labels[1].startswith("0.5\n")


def test_the_heat_map_puts_each_value_in_its_cell(runs: Path) -> None:
    axes = plots.rates(runs / "small-rates").axes[0]
    shown = {text.get_position(): float(text.get_text()) for text in axes.texts}
    for one in read_json(runs / "small-rates/fedavg/tried.json")["tried"]:
        place = [0.0, 0.1, 1.0].index(one["server.weight_decay"]), [0.01, 0.1].index(one["server.learning_rate"])
        assert shown[place] == pytest.approx(one["validation"], abs=0.051)


def test_losses_start_at_one(runs: Path) -> None:
    lines = plots.convergence(runs / "small-convergence").axes[0].lines
    assert [line.get_ydata()[0] for line in lines] == [1.0, 1.0]
    assert [len(line.get_xdata()) for line in lines] == [2, 2]


def test_router_boxes_hold_everybody_once_and_show_nobody(runs: Path) -> None:
    figure = plots.router(runs / "whole")
    people = sum(len(Personal.open(folder).weights()) for folder in (runs / "whole/devices").glob("node-*"))
    counted = [int(text.get_text().split("(")[1].split()[0]) for text in figure.legends[0].get_texts()]
    assert len(counted) == 4
    assert sum(counted) == people
    assert not any(
        line.get_marker() not in ("None", None, "") for axes in figure.axes for line in axes.lines
    )  # no outlier
