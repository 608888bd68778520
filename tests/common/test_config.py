"""Settings: mistakes are found when the YAML is read, and named so that they can be mended."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from tessera.benchmarks.harness.spec import BenchSpec
from tessera.common.config.components import component_of
from tessera.common.config.loading import load_settings, overlaid, parse_settings
from tessera.common.config.settings import Settings
from tessera.common.errors import ConfigError

BENCHMARKS = Path(__file__).parent.parent.parent / "benchmarks"
LEAST: dict[str, Any] = {"name": "run", "data": {"folder": "shop"}}


def keys(model: type[BaseModel], *prefix: str) -> Iterator[tuple[str, ...]]:
    """Every setting there is, as the path to it."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if component_of(field):
            yield (*prefix, name)
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, *prefix, name)
        else:
            yield (*prefix, name)


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The least settings with one of them changed."""
    *groups, last = path
    content = {name: dict(part) if isinstance(part, dict) else part for name, part in LEAST.items()}
    place = content
    for group in groups:
        place = place.setdefault(group, {})
    place[last] = value
    return content


@pytest.mark.parametrize("path", list(keys(Settings)), ids=".".join)
def test_a_misspelt_setting_names_the_one_that_was_meant(path: tuple[str, ...]) -> None:
    *groups, last = path
    misspelt = (*groups, last + "z")
    with pytest.raises(ConfigError) as error:
        parse_settings(changed(misspelt, 1), "my.yaml")
    assert f"my.yaml: unknown setting '{'.'.join(misspelt)}'; the nearest known one is '{'.'.join(path)}'" in str(
        error.value
    )


@pytest.mark.parametrize(
    ("written", "meant"), [("lokal", "local"), ("evalution", "evaluation"), ("fedration", "federation")]
)
def test_a_misspelt_group_names_the_group_that_was_meant(written: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{written}'; the nearest known one is '{meant}"):
        parse_settings(LEAST | {written: {"nodes": 3}}, "my.yaml")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rounds", 0),
        ("rounds", 2.5),
        ("rounds", "many"),
        ("rounds", None),
        ("seed", -1),
        ("fraction", 0),
        ("fraction", 1.1),
        ("device", "tpu"),
        ("name", "a/b"),
        ("name", ".."),
        ("name", ""),
        ("data.kind", "netflix"),
        ("data.min_rating", float("inf")),
        ("views.dim", 0),
        ("views.operators", ["sum", "product"]),
        ("views.id_scale", -0.1),
        ("local.learning_rate", 0),
        ("local.learning_rate", float("nan")),
        ("local.learning_rate", float("inf")),
        ("local.history_mask", 1.0),
        ("local.history_mask", float("nan")),
        ("local.backbone", "bert"),
        ("local.loss", {"name": "bce", "negatives": 0}),
        ("local.loss", {"name": "bce", "negatives": "many"}),
        ("local.loss", 3),
        ("strategy", "fedfoo"),
        ("mosaic.method", {"name": "ditto", "proximity": -1}),
        ("server.weight_decay", -1),
        ("evaluation.ks", [10, 0]),
        ("evaluation.ks", []),
        ("evaluation.every", 0),
        ("wire.views", "int4"),
        ("federation.timeout", 0),
        ("local", 3),
        ("views", None),
    ],
)
def test_a_bad_value_names_its_key(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^my\.yaml: {path.replace('.', '[.]')}"):
        parse_settings(changed(tuple(path.split(".")), value), "my.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"local": {"loss": "next", "backbone": "pfedrec"}},
            "local: .*needs a backbone that scores by the events before: history",
        ),
        (
            {"data": {"folder": "x", "kind": "netflix"}},
            "data.kind: .*no kind of data 'netflix'; known are conv",
        ),
        (
            {"data": {"folder": "x", "kind": "amazon", "encode": "tiny"}},
            "data.encode: .*'tiny' is no encoder that",
        ),
        ({"data": {"folder": "x", "split": "given", "cold_items": 0.1}}, "data: .*cold_items replaces the split"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(LEAST | changes, "my.yaml")


def test_all_mistakes_are_told_at_once() -> None:
    content = LEAST | {"rounds": 0, "seeds": 3, "local": {"learning_rate": "fast"}}
    with pytest.raises(ConfigError, match=r"rounds: .*; .*local\.learning_rate: .*; .*unknown setting 'seeds'"):
        parse_settings(content, "my.yaml")


@pytest.fixture
def by_executor(tmp_path: Path) -> Path:
    """Settings with other values for one executor."""
    path = tmp_path / "by-executor.yaml"
    overlays = {"grpc": {"rounds": 5, "local": {"loss": {"negatives": 2}}}}
    local = {"loss": {"name": "bce", "negatives": 8}, "learning_rate": 0.5}
    path.write_text(yaml.safe_dump(LEAST | {"rounds": 40, "local": local, "executors": overlays}))
    return path


@pytest.mark.parametrize(
    ("executor", "changes", "expected"),
    [
        ("", (), (40, 8)),
        ("inline", (), (40, 8)),
        ("grpc", (), (5, 2)),
        ("grpc", ("rounds=7",), (7, 2)),
        ("inline", ("local.loss.negatives=1", "rounds=3"), (3, 1)),
    ],
)
def test_changes_lie_over_the_executors_over_the_rest(
    by_executor: Path, executor: str, changes: tuple[str, ...], expected: tuple[int, int]
) -> None:
    settings = load_settings(by_executor, executor, changes)
    assert (settings.rounds, settings.local.loss.negatives) == expected
    assert settings.local.learning_rate == 0.5


@pytest.mark.parametrize(
    ("executor", "changes", "expected"),
    [
        ("inline", (), ("float32", 1.0)),
        ("ray", ("privacy.secure=true", "federation.nodes=3"), ("float32", 1.0)),
        ("grpc", ("federation.nodes=3",), ("int16", 0.99)),
        ("grpc", ("federation.nodes=2",), ("int8", 0.99)),
        ("grpc", ("federation.nodes=3", "privacy.secure=false"), ("int8", 0.99)),
        ("grpc", ("federation.nodes=3", "views.operators=[sum]", "views.single=false"), ("int16", 1.0)),
        ("grpc", ("wire.gradients=float32",), ("float32", 1.0)),
        ("grpc", ("wire.explained=1",), ("float32", 1.0)),
        ("grpc", ("wire.views=4%",), ("int8", 0.99)),
        ("grpc", ("federation.nodes=3", "federation.defence=trim"), ("float32", 1.0)),
        ("grpc", ("privacy.clip=1", "privacy.noise_multiplier=1"), ("float32", 1.0)),
    ],
)
def test_gradients_are_short_over_a_network_where_nobody_says_otherwise(
    by_executor: Path, executor: str, changes: tuple[str, ...], expected: tuple[str, float]
) -> None:
    """A device there may be one person's; what is read from a run's folder says what was meant then."""
    wire = load_settings(by_executor, executor, changes).wire
    assert (wire.gradients, wire.explained) == expected


@pytest.mark.parametrize(
    ("below", "above", "expected"),
    [
        (None, "bce", {"name": "bce", "negatives": 4}),
        ("bce", {"negatives": 8}, {"name": "bce", "negatives": 8}),
        ({"name": "bce", "negatives": 8}, "bce", {"name": "bce", "negatives": 8}),
        ({"name": "bce", "negatives": 8}, "softmax", {"name": "softmax"}),
        ({"name": "bce", "negatives": 8}, {"name": "squares", "confidence": 3}, {"name": "squares", "confidence": 3.0}),
        ("softmax", {"name": "bce"}, {"name": "bce", "negatives": 4}),
    ],
)
def test_a_component_is_laid_over_another_one(below: Any, above: Any, expected: dict[str, Any]) -> None:
    """Its own settings stay under its own name; under another one, what that one has no setting for is left behind."""
    content = LEAST | ({"local": {"loss": below}} if below else {})
    settings = parse_settings(overlaid(content, {"local": {"loss": above}}), "my.yaml")
    assert settings.local.loss.model_dump() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"local": {"loss": {"negatives": 8}}}, r"local\.loss: softmax has no setting 'negatives'; bce has"),
        (
            {"local": {"loss": {"name": "bce", "negativs": 8}}},
            "bce has no setting 'negativs'; the nearest known one is",
        ),
        ({"local": {"loss": {"name": "softmax", "x": 8}}}, "softmax has no setting 'x', nor any other"),
        ({"local": {"backbone": {"l1_weight": 1}}}, "history has no setting 'l1_weight'; fedrap has"),
        ({"local": {"backbone": {"ridge": 1}}}, "history has no setting 'ridge'; fcf has"),
        (
            {"local": {"loss": {"name": "softmax", "next_item_samples": 8}}},
            "'next_item_samples'; next and wpcl and crtr have",
        ),
        ({"mosaic": {"method": {"name": "sft", "blocks": 2}}}, "sft has no setting 'blocks'; pq and fedmosaic have"),
        ({"mosaic": {"method": {"name": "pq", "temperature": 2}}}, "pq has no setting 'temperature'; fedmosaic has"),
        ({"mosaic": {"method": {"proximity": 2}}}, "fedmosaic has no setting 'proximity'; ditto and perada have"),
        ({"strategy": {"name": "combined", "x": 1}}, "combined has no setting 'x', nor any other"),
        ({"local": {"negatives": 8}}, r"unknown setting 'local\.negatives'; .* 'local\.loss\.negatives'"),
    ],
)
def test_a_setting_of_another_component_names_those_that_have_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_settings(LEAST | changes, "my.yaml")


@pytest.mark.parametrize("overlays", [{"slurm": {"rounds": 5}}, ["grpc"], None, {"grpc": 5}])
def test_settings_by_executor_must_be_settings(by_executor: Path, overlays: Any) -> None:
    by_executor.write_text(yaml.safe_dump(LEAST | {"executors": overlays}))
    with pytest.raises(ConfigError, match=r"by-executor\.yaml: .*executors"):
        load_settings(by_executor, "grpc")


@pytest.mark.parametrize(
    "change", ["rounds", "=", "rounds=[5", "rounds=a: b: c", "local=3", "local.loss.negatives.more=1"]
)
def test_a_change_that_is_none_is_named(by_executor: Path, change: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_settings(by_executor, "inline", [change])
    assert change.partition("=")[0].split(".")[0] in str(error.value)


def test_what_must_be_said_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"name: Field required; data: Field required"):
        parse_settings({}, "my.yaml")


def test_no_view_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"views: .*no view"):
        parse_settings(LEAST | {"views": {"operators": [], "single": False}}, "my.yaml")


def test_settings_are_frozen() -> None:
    settings = parse_settings(LEAST, "my.yaml")
    with pytest.raises(ValidationError, match="frozen"):
        settings.rounds = 3
    with pytest.raises(ValidationError, match="frozen"):
        settings.local.learning_rate = 3


def test_settings_survive_being_written_out(tmp_path: Path) -> None:
    """A run's folder keeps its resolved settings, and they travel to the devices as JSON."""
    content = LEAST | {"views": {"modalities": ["image"], "operators": ["mlp"]}, "local": {"learning_rate": 3e-05}}
    settings = parse_settings(content, "my.yaml")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(path) == settings
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize("path", sorted(BENCHMARKS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_benchmark_settings_load_and_begin_with_their_command(path: Path) -> None:
    is_grid = bool({"methods", "extends"} & set(yaml.safe_load(path.read_text())))
    BenchSpec.load(path) if is_grid else load_settings(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("#")
    assert ("tessera bench" if is_grid else "tessera train") in first
    assert str(path.relative_to(BENCHMARKS.parent)) in first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- rounds\n- seed\n", "settings are a mapping, not a list"),
        (b"", "settings are a mapping, not a NoneType"),
        (b"rounds", "settings are a mapping, not a str"),
        (b"rounds: [1, 2", "is not readable YAML"),
        (b"a: 1\n\tb: 2", "is not readable YAML"),
        (b"\xff\xfe\x00rounds", "is not readable YAML"),
        (b"!!python/object/apply:os.system ['true']", "is not readable YAML"),
    ],
)
def test_a_file_that_holds_no_settings_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        load_settings(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml does not exist"):
        load_settings(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="is a folder: name a YAML file"):
        load_settings(tmp_path)


def test_nodes_can_be_as_many_as_there_are_processors(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(LEAST | {"federation": {"nodes": "auto"}}))
    assert load_settings(config).federation.nodes == os.cpu_count()
    with pytest.raises(ConfigError, match=r"federation\.nodes"):
        load_settings(config, changes=["federation.nodes=many"])
