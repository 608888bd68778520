"""Settings that would do nothing: refused when somebody sets one, with what uses it, and left out of what is written."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tessera.benchmarks.harness.spec import BenchSpec
from tessera.common.config.effects import without_effect
from tessera.common.config.loading import load_settings, overlaid, parse_settings
from tessera.common.config.settings import Settings
from tessera.common.errors import ConfigError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LEAST: dict[str, Any] = {"name": "run", "data": {"folder": "shop"}}
QUESTIONS = {"data": {"folder": "x", "kind": "questions"}, "strategy": "fedmosaic"}
ONE_VIEW = {"operators": ["mlp"], "single": False}
HISTORY = (
    "nothing reads the history: the router does where there are several views, and the backbones fcf, history, cosine, sasrec "
    "and gru4rec do"
)

PAIRS: list[tuple[dict[str, Any], dict[str, Any], str, dict[str, Any]]] = [
    # beside what, a setting without effect, what the message says, and beside what it has one
    ({}, {"mosaic": {"rank": 8}}, "mosaic.rank .*fedvlr does not use it, fedmosaic and combined do", QUESTIONS),
    ({}, {"mosaic": {"method": "pq"}}, "mosaic.method .*fedmosaic and combined do", QUESTIONS),
    (QUESTIONS, {"views": {"dim": 8}}, "views.dim .*fedmosaic does not use it, fedvlr and combined do", {}),
    (QUESTIONS, {"local": {"loss": "bce"}}, "local.loss .*fedvlr and combined do", {}),
    (QUESTIONS, {"server": {"learning_rate": 0.1}}, "server.learning_rate .*fedvlr and combined do", {}),
    (QUESTIONS, {"wire": {"views": "int8"}}, "wire.views .*fedvlr and combined do", {}),
    (QUESTIONS, {"privacy": {"clip": 1.0}}, "privacy.clip .*fedvlr and combined do", {}),
    (QUESTIONS, {"federation": {"largest_gradient": 1.0}}, "sends no gradients: see mosaic.largest", {}),
    (QUESTIONS, {"federation": {"nodes": 3, "defence": "trim"}}, "has no gradients to defend, fedvlr and combined have", {}),
    (QUESTIONS, {"fraction": 0.5}, "fraction .*devices that answer questions do not use it", {}),
    (QUESTIONS, {"evaluation": {"ks": [5]}}, "evaluation.ks .*devices that answer questions do not use it", {}),
    (QUESTIONS, {"evaluation": {"patience": 5}}, "evaluation.patience .*do not use it", {}),
    (QUESTIONS, {"evaluation": {"history_at_test": "train+validation"}}, "evaluation.history_at_test .*not use it", {}),
    (QUESTIONS, {"data": {"cold_users": 0.1}}, "data.cold_users .*do not use it", {}),
    (QUESTIONS, {"data": {"cold_items": 0.1}}, "data.cold_items .*do not use it", {}),
    ({"strategy": "combined"}, {"mosaic": {"steps": 9}}, "only devices that answer questions", QUESTIONS),
    ({"strategy": "combined"}, {"mosaic": {"stream": "dynamic"}}, "only devices that answer questions", QUESTIONS),
    (
        {"strategy": "combined", "mosaic": {"method": "sft"}},
        {"mosaic": {"largest": 1.0}},
        "mosaic.largest .*sft sends nothing",
        {"strategy": "combined"},
    ),
    ({}, {"views": {"spectral_scale": 5}}, "views.spectral_rounds above 0", {"views": {"spectral_rounds": 3}}),
    ({}, {"views": {"unseen_scale": 5}}, "views.spectral_rounds above 0", {"views": {"spectral_rounds": 3}}),
    (
        {"views": {"spectral_rounds": 3, "modalities": []}},
        {"views": {"unseen_scale": 5}},
        "views.modalities is empty",
        {"views": {"spectral_rounds": 3}},
    ),
    ({"views": {"modalities": []}}, {"views": {"content_scale": 2}}, "views.modalities is empty", {}),
    ({"views": {"spectral_rounds": 3}}, {"views": {"content_scale": 2}}, "the start", {}),
    (
        {"views": {"start_from": ["text"], "modalities": []}},
        {"views": {"unseen_scale": 5}},
        "views.modalities is empty",
        {"views": {"start_from": ["text"]}},
    ),
    (
        {"local": {"route": "uniform", "backbone": {"name": "history", "private_vector": False}}},
        {"local": {"learning_rate": 0.1}},
        "nothing private is learnt",
        {"local": {"backbone": {"name": "history", "private_vector": False}}},
    ),
    (
        {"views": {"item_ids": False}, "local": {"backbone": "fedavg"}},
        {"views": {"id_scale": 2}},
        "with views.item_ids, or the backbone history",
        {"views": {"item_ids": False}},
    ),
    ({"views": {"item_ids": False}}, {"views": {"id_dim": 8}}, "views.id_dim .*views.item_ids", {}),
    ({"views": ONE_VIEW}, {"local": {"route": "uniform"}}, "there is a single view", {}),
    ({"views": ONE_VIEW}, {"local": {"prior": 1}}, "several views that a router weighs", {}),
    ({"local": {"route": "uniform"}}, {"local": {"prior": 1}}, "several views that a router weighs", {}),
    ({"privacy": {"clip": 1, "noise_multiplier": 1}}, {"local": {"prior": 1}}, "does not noise", {}),
    ({"views": ONE_VIEW}, {"wire": {"explained": 0.9}}, "there is a single view", {}),
    ({"views": ONE_VIEW, "local": {"backbone": "fedavg"}}, {"local": {"recency": 1}}, HISTORY, {"views": ONE_VIEW}),
    ({"views": ONE_VIEW, "local": {"backbone": "fedavg"}}, {"local": {"history_mask": 0.5}}, HISTORY, {}),
    ({"local": {"backbone": "fedavg", "route": "uniform"}}, {"local": {"recency": 1}}, HISTORY, {}),
    ({}, {"data": {"min_rating": 3}}, "data.min_rating .*converted do not use it", {"data": {"kind": "amazon"}}),
    ({}, {"data": {"min_user_events": 3}}, "converted do not use it", {"data": {"kind": "sequences"}}),
    ({}, {"data": {"min_item_events": 3}}, "converted do not use it", {"data": {"kind": "ninerec"}}),
    ({}, {"data": {"encode": "builtin"}}, "converted do not use it", {"data": {"kind": "movielens"}}),
    ({"data": {"kind": "movielens"}}, {"data": {"shop_seed": 3}}, "shop and aspects-shop do", {"data": {"kind": "shop"}}),
    ({"data": {"kind": "sequences"}}, {"data": {"min_rating": 3}}, "sequences do not use it", {"data": {"kind": "amazon"}}),
    ({"data": {"kind": "fedvlr"}}, {"data": {"min_user_events": 3}}, "fedvlr do not use it", {"data": {"kind": "amazon"}}),
]  # fmt: skip


@pytest.mark.parametrize(("beside", "added", "message", "owner"), PAIRS)
def test_what_would_do_nothing_is_refused_with_what_uses_it(
    beside: dict[str, Any], added: dict[str, Any], message: str, owner: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=rf"^my\.yaml: .*has no effect: .*{message.rpartition(' .*')[2]}") as error:
        parse_settings(overlaid(overlaid(LEAST, beside), added), "my.yaml")
    assert message.partition(" .*")[0] in str(error.value)
    parse_settings(overlaid(overlaid(LEAST, beside), {}), "my.yaml")
    parse_settings(overlaid(overlaid(LEAST, owner), added), "my.yaml")


@pytest.mark.parametrize("harmless", [{"local": {"recency": 0, "history_mask": 0.0}}, {"local": {"route": "history"}}])
def test_what_asks_for_nothing_is_taken(harmless: dict[str, Any]) -> None:
    """Grids share a base: that nothing is hidden is true of a backbone that reads no history."""
    beside = {"views": ONE_VIEW, "local": {"backbone": "fedavg"}}
    settings = parse_settings(overlaid(overlaid(LEAST, beside), harmless), "my.yaml")
    again = parse_settings(settings.model_dump(mode="json"), "again")
    assert again == settings


def test_a_change_leaves_behind_what_it_leaves_without_effect_and_nothing_else(tmp_path: Path) -> None:
    """Taking something away on the command line takes no edit of the file; what is asked for there must do something."""
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(LEAST | {"views": {"id_dim": 16}, "local": {"backbone": "fedavg"}}))
    settings = load_settings(path, changes=["views.item_ids=false"])
    assert "id_dim" not in settings.model_dump()["views"]
    with pytest.raises(ConfigError, match=r"views\.id_dim has no effect"):
        load_settings(path, changes=["views.item_ids=false", "views.id_dim=8"])
    path.write_text(yaml.safe_dump(LEAST | {"views": {"spectral_scale": 5}}))
    with pytest.raises(ConfigError, match=r"views\.spectral_scale has no effect"):
        load_settings(path, changes=["views.item_ids=false"])
    assert load_settings(path, changes=["views.spectral_rounds=2"]).views.spectral_scale == 5


def test_all_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"views\.spectral_scale has .*; views\.unseen_scale has"):
        parse_settings(LEAST | {"views": {"spectral_scale": 5, "unseen_scale": 2}}, "my.yaml")


def shipped() -> list[tuple[str, Settings]]:
    """The settings of every run that the shipped files describe, choices by their first."""
    found = []
    for path in sorted(BENCHMARKS.rglob("*.yaml")):
        where = str(path.relative_to(BENCHMARKS))
        if not {"methods", "extends"} & set(yaml.safe_load(path.read_text())):
            found += [(f"{where} {executor}", load_settings(path, executor)) for executor in ("inline", "ray", "grpc")]
            continue
        spec = BenchSpec.load(path)
        for dataset in spec.datasets:
            for method in spec.methods:
                chosen = next(spec.candidates(method))
                found.append((f"{where} {dataset} {method}", spec.settings(dataset, method, chosen, 0)))
    return found


def test_what_is_written_of_every_shipped_run_can_be_read_again() -> None:
    runs = shipped()
    assert len(runs) > 200
    for where, settings in runs:
        written = yaml.safe_dump(settings.model_dump(mode="json"))
        assert parse_settings(yaml.safe_load(written), where) == settings, where
        assert Settings.model_validate_json(settings.model_dump_json()) == settings, where


@pytest.mark.parametrize("changes", [{}, QUESTIONS, {"strategy": "combined"}, {"views": ONE_VIEW}])
def test_what_is_written_holds_nothing_without_effect(changes: dict[str, Any]) -> None:
    settings = parse_settings(LEAST | changes, "my.yaml")
    written, idle = settings.model_dump(), without_effect(settings)
    assert idle
    for key in idle:
        group, _, name = key.partition(".")
        assert name not in written.get(group, {}) if name else group not in written
