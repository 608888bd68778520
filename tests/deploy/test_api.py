"""What programs call: `import tessera`, with the smallest shop."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tessera
from tessera.deploy.cli.main import app

SETTINGS = {
    "name": "small",
    "data": {"folder": "shop", "kind": "converted"},
    "rounds": 2,
    "views": {"dim": 8, "id_dim": 8, "operators": []},
    "local": {"backbone": "history"},
    "evaluation": {"every": 1},
    "federation": {"nodes": 2},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tessera.Result:
    """A run of two rounds by two devices on a generated shop."""
    folder = tmp_path_factory.mktemp("api")
    about = tessera.convert("shop", None, folder / "shop", items=80, users=20)
    assert about["counts"]["items"] == 80
    return tessera.train(SETTINGS, folder / "shop", runs=folder / "runs", progress=False)


def cli(*words: object) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def test_opening_a_device_imports_no_federation_and_an_event_no_torch(result: tessera.Result) -> None:
    program = f"""
import json, sys, tessera
def there(*names): return sorted(set(names) & {{name.partition(".")[0] for name in sys.modules}})
heavy = "flwr", "grpc", "ray", "peft", "open_clip", "torchvision", "transformers"
assert not there("torch", "polars", *heavy), "import tessera"
device = tessera.Device.open({str(result.devices[0])!r})
device.people(), device.find("lamp")
assert not there("torch", *heavy), there("torch", *heavy)
device.recommend(device.people()[0].user)
assert not there(*heavy), there(*heavy)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_result_is_read_again_as_it_was(result: tessera.Result) -> None:
    again = tessera.Result.load(result.path)
    assert (again.scores, again.baselines, again.figures) == (result.scores, result.baselines, result.figures)
    rounds = result.rounds
    assert rounds["round"].to_list() == [1, 2]
    assert rounds["validation/all/ndcg@50"].max() == pytest.approx(result.scores["validation/all/ndcg@50"])
    assert 0 < result.baselines["random"]["test/all/hr@50"] < result.baselines["random"]["test/all/users"] * 100
    shown = result._repr_html_()
    assert "popularity" in shown
    assert f"{result.scores['test/all/hr@10']:.2f}" in shown


def test_a_device_is_one_thing_to_programs_and_commands(result: tessera.Result, tmp_path: Path) -> None:
    device = result.device(0)
    device.add_person("<b>zoe")
    assert device.people()[-1] == tessera.Device.open(device.folder).people()[-1]
    with pytest.raises(tessera.DataError, match="no event yet"):
        device.recommend("<b>zoe")
    had = [device.add_event("<b>zoe", item).title for item in ("item-01", "item-02")]
    found = device.recommend("<b>zoe", 5)
    words = ("recommend", "--data-dir", device.folder, "--user", "<b>zoe", "-k", 5, "--json")
    assert json.loads(cli(*words)) == json.loads(json.dumps(found.to_json()))
    assert "&lt;b&gt;zoe" in found._repr_html_() + device._repr_html_()
    assert "<b>zoe" not in (found._repr_html_() + device._repr_html_()).replace("<b>for", "")
    assert found.frame()["item"].to_list() == [item.item for item in found]
    why = device.explain("<b>zoe", found[0].item)
    assert (why.place, why.score) == (1, found[0].score)
    other = device.explain("<b>zoe", found[4].item)
    assert sum(why.parts.values()) - sum(other.parts.values()) == pytest.approx(why.score - other.score, rel=1e-4)
    assert why.like.keys() == why.parts.keys() == found.reliance.keys()
    assert device.explain("<b>zoe", "item-01").place is None
    assert {why.like[view] for view in why.like} <= set(had)
    cli("device", "add-event", "<b>zoe", found[0].item, "--data-dir", device.folder)
    assert found[0].item not in [item.item for item in device.recommend("<b>zoe", 80)], "another process's event"
    device.export("<b>zoe", tmp_path / "zoe.zip")
    other = result.device(1)
    assert other.import_(tmp_path / "zoe.zip").events == 3
    assert other.recommend("<b>zoe") == device.recommend("<b>zoe")
    device.forget("<b>zoe")
    with pytest.raises(tessera.DataError, match="is not on this device"):
        device.recommend("<b>zoe")


def test_what_cannot_be_is_said_in_one_line(result: tessera.Result, tmp_path: Path) -> None:
    with pytest.raises(tessera.ConfigError, match=r"'round'; the nearest known one is 'rounds'"):
        tessera.load_config(SETTINGS, "round=3")
    assert tessera.load_config(SETTINGS, "local.learning_rate=0.5").local.learning_rate == 0.5
    assert SETTINGS["local"] == {"backbone": "history"}, "what was given stays as it is"
    with pytest.raises(tessera.ConfigError, match="executor 'cloud': choose one of inline, ray, grpc"):
        tessera.train(SETTINGS, executor="cloud")
    with pytest.raises(tessera.RunError, match="holds a run already"):
        tessera.train(result.config, result.path.parents[1] / "shop", runs=result.path.parent, progress=False)
    with pytest.raises(tessera.ConfigError, match="'min_ratings'; the nearest known one is 'min_rating'"):
        tessera.convert("table", tmp_path, tmp_path / "out", min_ratings=3)
    with pytest.raises(tessera.DataError, match="is no device's folder"):
        tessera.Device.open(tmp_path)
    with pytest.raises(tessera.DataError, match="holds no run"):
        tessera.Result.load(tmp_path)
    with pytest.raises(tessera.DataError, match="there is no device 2"):
        result.device(2)
    with pytest.raises(tessera.RunError, match="tessera federate server"):
        tessera.Federation(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tessera.trian  # noqa: B018
    assert not list(tmp_path.iterdir())
