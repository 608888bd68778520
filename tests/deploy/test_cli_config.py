"""`tessera config`: resolved settings that can be run again, and a schema that knows what the settings know."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from tessera.common.config.loading import load_settings, overlaid
from tessera.common.config.schema import config_schema
from tessera.common.errors import ConfigError
from tessera.deploy.cli.config import app

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GRIDS = {"methods", "extends"}
"""What only grids have: one that extends another may have its methods from there."""
RUNS = [path for path in sorted(BENCHMARKS.rglob("*.yaml")) if not GRIDS & set(yaml.safe_load(path.read_text()))]
SCHEMA = jsonschema.Draft202012Validator(config_schema())
LEAST: dict[str, Any] = {"name": "run", "data": {"folder": "shop"}}


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.mark.parametrize("executor", ["inline", "ray", "grpc"])
def test_what_is_shown_is_the_run_as_it_would_be_run(executor: str, tmp_path: Path) -> None:
    config, change = BENCHMARKS / "demo.yaml", "local.backbone=fedrap"
    path = tmp_path / "shown.yaml"
    path.write_text(shown("show", str(config), "--executor", executor, "--set", change))
    assert load_settings(path) == load_settings(config, executor, [change])
    assert load_settings(path).rounds == (5 if executor == "grpc" else 40)
    assert yaml.safe_load(path.read_text())["local"]["backbone"]["l1_weight"] == 0.1, "defaults are shown"


def test_a_mistake_is_explained_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"local\.loss: softmax has no setting 'negatives'; bce has"):
        shown("show", str(BENCHMARKS / "demo.yaml"), "--set", "local.loss.negatives=8")


def test_the_schema_in_the_repository_is_what_the_command_prints() -> None:
    """Otherwise: tessera config schema > benchmarks/schema.json."""
    assert (BENCHMARKS / "schema.json").read_text(encoding="utf-8") == shown("schema")


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(shown("schema")))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_shipped_files_name_the_schema_and_fit_it(path: Path) -> None:
    marks = [line for line in path.read_text().splitlines() if line.startswith("# yaml-language-server: $schema=")]
    assert [(path.parent / mark.partition("=")[2]).resolve() for mark in marks] == [BENCHMARKS / "schema.json"]
    SCHEMA.validate(yaml.safe_load(path.read_text()))
    SCHEMA.validate(load_settings(path).model_dump(mode="json"))


@pytest.mark.parametrize(
    "content",
    [
        {"local": {"loss": "bce", "backbone": {"name": "fcf", "ridge": 2}}},
        {"local": {"loss": {"name": "bce", "negatives": 2}}},
        {"mosaic": {"method": {"temperature": 2}}, "strategy": "combined"},
        {"executors": {"grpc": {"local": {"loss": {"negatives": 2}}, "data": {"cold_users": 0.1}}, "ray": {}}},
    ],
)
def test_the_schema_takes_what_can_be_written(content: dict[str, Any]) -> None:
    SCHEMA.validate(overlaid(LEAST, content))


@pytest.mark.parametrize(
    "content",
    [
        {"local": {"loss": {"name": "softmax", "negatives": 2}}},
        {"local": {"loss": {"negatives": 2}}},
        {"local": {"loss": {"name": "bce", "negatives": 0}}},
        {"local": {"loss": "bert"}},
        {"local": {"negatives": 2}},
        {"data": {"kind": "netflix"}},
        {"rounds": 0},
        {"executors": {"slurm": {}}},
        {"executors": {"grpc": {"rownds": 3}}},
    ],
)
def test_the_schema_marks_mistakes(content: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(overlaid(LEAST, content))
