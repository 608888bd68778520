"""`tessera init` decides by what data have, says why, and a bench of what it wrote ends with settings that can be trained."""

import json
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tessera.benchmarks.cli import bench
from tessera.benchmarks.harness.spec import BenchSpec
from tessera.common.config.loading import load_settings, settings_of
from tessera.common.config.yaml_text import load_yaml, with_reasons
from tessera.common.datasets import convert_shop
from tessera.common.datasets.first_settings import first_settings
from tessera.common.errors import ConfigError, DataError
from tessera.deploy.cli.datasets.init import app

KINDS = ((), ("text",), ("image", "text"))


def run(command: Any, *arguments: object) -> str:
    """Run a command; raise what it raised, return what it printed."""
    result = CliRunner().invoke(command, list(map(str, arguments)), env={"COLUMNS": "200"})
    if result.exception is not None:
        raise result.exception
    return result.stdout


def about(**changes: Any) -> dict[str, Any]:
    """What `describe` says of a dataset like MovieLens."""
    split = {"rule": "leave-one-out", "validation": 600, "cold_targets": 0.0, "tied": {"validation": 0.2, "test": 0.1}}
    facts = {
        "kind": "table",
        "timed": True,
        "counts": {"users": 600, "items": 3000, "interactions": 90_000},
        "events_per_user": [12, 34, 68, 159, 2132],
        "features": {name: {} for name in KINDS[-1]},
    }
    return {**facts, **changes, "split": split | changes.get("split", {})}


def test_init_and_bench_find_settings_for_the_shop(tmp_path: Path) -> None:
    shop, runs = tmp_path / "data" / "small shop", tmp_path / "runs"
    convert_shop(shop, 90, 24)
    told = run(app, shop, "--out", tmp_path)
    config, grid = tmp_path / "small-shop.yaml", tmp_path / "small-shop-grid.yaml"
    assert f"tessera train {config} --data {shop.parent}" in told
    with pytest.raises(ConfigError, match=re.escape(f"{config} is there already: pass --overwrite")):
        run(app, shop, "--out", tmp_path)
    spec = BenchSpec.load(grid, quick=True)
    likeliest = next(iter(spec.methods))
    rows = BenchSpec.load(grid)
    expected = rows.settings("", likeliest, {}, 0).model_copy(update={"name": "small-shop"})
    assert load_settings(config) == expected

    ended = run(bench, grid, "--data", shop.parent, "--runs", runs, "--quick")
    figures = json.loads(ended.splitlines()[-1])
    reached = {name: figures["means"][name]["validation/all/ndcg@20"] for name in spec.methods}
    best = figures["best"][0]
    assert best["method"] == max(reached, key=lambda name: reached[name])
    assert best["validation"] == pytest.approx(reached[best["method"]], rel=1e-4)
    assert f"best on validation: {best['method']}" in ended
    chosen = load_settings(Path(best["config"]))
    name = f"small-shop-grid-quick-{best['method']}"
    assert chosen == spec.settings("", best["method"], {}, 0).model_copy(update={"name": name})


@pytest.mark.parametrize(("modalities", "timed"), list(product(KINDS, (True, False))))
def test_rows_are_few_and_go_by_what_is_there(modalities: tuple[str, ...], timed: bool) -> None:
    first = first_settings(about(features={name: {} for name in modalities}, timed=timed), "mine")
    content, _ = first.grid()
    spec = BenchSpec.model_validate(content | {"quick": None})
    settings = {name: spec.settings("", name, {}, 0) for name in spec.methods}  # each of them is valid
    assert settings_of(first.config()[0], "mine.yaml") == settings[next(iter(settings))].model_copy(
        update={"name": "mine"}
    )
    assert 3 <= len(settings) <= 8
    ordered = [one for one in settings.values() if one.local.loss.name == "next" or one.local.recency]
    assert bool(ordered) == timed
    assert len(ordered) < len(settings)
    with_contents = [one for one in settings.values() if one.views.modalities is None]
    assert bool(with_contents) == bool(modalities)
    assert len(with_contents) < len(settings)


def test_what_data_have_changes_what_is_tried() -> None:
    def first(**changes: Any) -> tuple[str, dict[str, Any]]:
        content = first_settings(about(**changes), "mine").grid()[0]
        return next(iter(content["methods"])), content

    assert first()[0] == "next-views"
    assert first(split={"tied": {"validation": 0.8, "test": 0.6}})[0] == "set-views"
    assert first(events_per_user=[5, 5, 6, 7, 250])[0] == "set-views"
    assert "contents" in first(split={"cold_targets": 0.4})[1]["methods"]
    assert first(split={"rule": "given"})[1]["base"]["data"] == {"folder": "mine", "split": "given"}
    large = first(counts={"users": 22_000, "items": 12_000, "interactions": 200_000})[1]
    assert large["base"]["fraction"] == 0.05
    assert (large["base"]["rounds"], large["baselines"]) == (40, [])
    assert "fraction" not in first()[1]["base"]
    assert first(counts={"users": 60, "items": 40, "interactions": 700})[1]["base"]["evaluation"]["ks"] == [5, 10, 20]


def test_every_line_says_why() -> None:
    for modalities, timed in product(KINDS, (True, False)):
        first = first_settings(
            about(features=dict.fromkeys(modalities), timed=timed, split={"cold_targets": 0.5}), "mine"
        )
        for content, reasons in (first.config(), first.grid()):
            text = with_reasons(content, reasons, ["a heading"])
            assert load_yaml(text) == content
            lines = text.splitlines()[1:]
            within = [line for line in lines if re.match(r" {4}(views|local|server): |      \w", line)]  # of a row
            silent = [line for line in lines if "  # " not in line and not line.endswith(":") and line not in within]
            assert silent == []


def test_what_is_no_dataset_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run(app, tmp_path / "nowhere")
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"holds neither a dataset .* nor raw data"):
        run(app, tmp_path / "raw")
    (tmp_path / "raw" / "events.csv").write_text("customer,sku\nann,tea\n")
    with pytest.raises(
        DataError, match=r"Convert it first: tessera data convert table .*raw DESTINATION --user-column customer"
    ):
        run(app, tmp_path / "raw")
    with pytest.raises(DataError, match="nobody in mine has an event for validation"):
        first_settings(about(split={"validation": 0}), "mine")
    questions = {name: value for name, value in about(kind="questions").items() if name != "split"}
    with pytest.raises(DataError, match="holds no people's events"):
        first_settings(questions, "mine")


def test_yaml_with_reasons_is_the_same_yaml() -> None:
    content = {"a": 1, "b": {"c": [1, 2], "d": {"e": "yes", "f": "x: y # z"}}, "g": {"k" * 60: "v" * 60}, "h": None}
    text = with_reasons(content, {"a": "one", "b.c": "two"}, ["tessera", ""])
    assert yaml.safe_load(text) == content
    assert text.startswith("# tessera\n#\na: 1  # one\nb:\n  c: [1, 2]  # two\n")
