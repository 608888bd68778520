"""What somebody gets wrong at first is named for what it is, with the remedy."""

import sys
from pathlib import Path

import pytest
from rich.console import Console

from tessera.common.metrics.names import ALL, COLD, HR, NDCG, TEST, USERS, WARM, MetricName
from tessera.common.metrics.records import ResultRecord
from tessera.deploy.api.display import result_table
from tessera.deploy.cli import data, main


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("recommend", "--data-dir", "nope", "--user", "u"), "nope is no device's folder: it does not exist"),
        (("device", "ledger", "--data-dir", "nope"), "nope is no device's folder: it does not exist"),
        (("train", "grid.yaml"), "grid.yaml is a grid of runs, not the settings of one: tessera bench runs it"),
        (("train", "."), ". is a folder: name a YAML file"),
        (("bench", "run.yaml"), "run.yaml has the settings of one run, and is no grid of runs: tessera train runs it"),
        (("demo", "run.yaml"), "the demo is about the generated shop"),
        (("train", "run.yaml", "--data", "nope"), "--data nope does not exist: name the folder that holds 'ml'"),
        (("train", "run.yaml", "--data", "run.yaml"), "--data run.yaml is a file"),
        (("train", "run.yaml", "--data", "raw"), "no folder 'ml' in --data raw, nor is it data of the kind movielens"),
        (("train", "run.yaml", "--data", "."), "--data ., nor is it data of the kind movielens; in it are raw"),
        (("trian",), "No such command 'trian'. Did you mean 'train'?"),
        (("data", "descibe"), "No such command 'descibe'. Did you mean 'describe'?"),
    ],
)
def test_what_a_newcomer_gets_wrong_is_named_with_the_remedy(
    command: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("grid.yaml").write_text("{name: g, seeds: [0], methods: {a: {}}}")
    Path("run.yaml").write_text("{name: r, data: {folder: ml, kind: movielens}}")
    Path("raw").mkdir()
    Path("raw/events.csv").write_text("user,item\na,x\n")
    monkeypatch.setattr(sys, "argv", ["tessera", *command])
    monkeypatch.delenv("TESSERA_DATA", raising=False)
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = " ".join(" ".join(capsys.readouterr().err.split("│")).split())
    assert ended.value.code
    assert told in said
    assert said.count("Did you mean") == told.count("Did you mean")


def test_no_word_of_a_table_is_cut_off_at_80_columns() -> None:
    """A run's table with its longest names, and the description of data."""
    console = Console(width=80)
    baselines = ("item-id-descending", "inverse-popularity", "content-image", "content-all")
    scores = {MetricName(TEST, group, HR, 50): 12.34 for group in (ALL, WARM, COLD)}
    scores |= {MetricName(TEST, ALL, metric, k): 12.34 for metric in (HR, NDCG) for k in (10, 20, 50)}
    scores |= {MetricName(TEST, group, USERS): 35598.0 for group in (ALL, WARM, COLD)}
    beside = {name.of(baseline): value for baseline in baselines for name, value in scores.items()}
    result = ResultRecord(name="a-name", seed=0, rounds=2, scores=scores, baselines=beside, seconds=1.0)
    about: dict = {"features": {"image": {"dim": 216, "dtype": "float32", "missing": 12}}}
    about["features"]["image"] |= {"encoder": "colour-and-gradient-histograms-v1", "sha256": "0" * 64}
    for table, words in (
        (result_table(result, (10, 20, 50)), (*baselines, "35598", "HR@50", "warm")),
        (data._modalities(about), ("colour-and-gradient-histograms-v1", "float32", "modality")),
    ):
        with console.capture() as capture:
            console.print(table)
        for word in words:
            assert word in capture.get(), capture.get()
        assert "…" not in capture.get()
