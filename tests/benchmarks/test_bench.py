"""A grid runs each method and seed once, chooses on validation, sets baselines beside, and goes on where it was."""

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from PIL import Image

from tessera.benchmarks.baselines.selection import BASELINES
from tessera.benchmarks.harness.bootstrap import bootstrap, paired_differences
from tessera.benchmarks.harness.per_user import PerUserResults, load_people
from tessera.benchmarks.harness.runner import RESULT, run_bench
from tessera.benchmarks.harness.spec import BenchSpec
from tessera.common.config.settings import DataSettings
from tessera.common.data.catalogue import FEATURES, load_catalogue
from tessera.common.errors import ConfigError
from tessera.common.metrics import names
from tessera.deploy.provisioning.datasets import prepared_dataset
from tests.support.catalogues import small_dataset
from tests.support.metrics import read_metrics

ROOT = Path(__file__).parents[2]
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
ONE = {"history": {"local": {"backbone": "history"}}}


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "grid.yaml"
    content = {"name": "grid", "base": BASE, "methods": METHODS, "seeds": [3, 4], "quick": {"rounds": 1}}
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


def test_methods_share_the_settings_of_a_component_only_under_its_own_name(tmp_path: Path) -> None:
    base = BASE | {"local": {"loss": {"name": "bce", "negatives": 2}}}
    losses = {"same": "bce", "more": {"negatives": 8}, "other": "softmax", "none": None}
    methods = {name: {"local": {"loss": loss}} if loss else {} for name, loss in losses.items()}
    spec = BenchSpec.load(written(tmp_path, base=base, methods=methods))
    found = {name: spec.settings("", name, {}, 0).local.loss.model_dump() for name in losses}
    two = {"name": "bce", "negatives": 2}
    assert found == {"same": two, "more": two | {"negatives": 8}, "other": {"name": "softmax"}, "none": two}


def test_grid_runs_once_chooses_on_validation_and_resumes(tmp_path: Path) -> None:
    small_dataset(tmp_path / "small")
    grid, told = BenchSpec.load(written(tmp_path)), []
    table = run_bench(grid, tmp_path, tmp_path / "runs", told.append).table
    # Two candidates with the first seed, the better one with the other seed, FedAvg twice.
    assert len(told) == grid.runs() == 2 + 1 + 2
    assert told[0].startswith("history/seed3-learning_rate=0.001: run 1 of 5, ")
    tried = json.loads((tmp_path / "runs/grid/history/tried.json").read_text())
    best = max(tried["tried"], key=lambda one: one["validation"])
    assert tried["chosen"] == {"local.learning_rate": best["local.learning_rate"]}
    rows = table.filter(pl.col("method").is_in(["history", "fedavg-id"]))
    assert rows.select("method", "seed").rows() == [("history", 3), ("history", 4), ("fedavg-id", 3), ("fedavg-id", 4)]
    assert {"random", "popularity", "item-id"} <= set(table["method"])
    assert rows["private_parameters"].to_list() == [7 * 9 + 8] * 2 + [9 + 8 + 1] * 2
    assert pl.read_parquet(tmp_path / "runs/grid/results.parquet").equals(table)

    # One result is lost, as if the grid had been killed in that run: it alone is run again, with the same outcome.
    lost = next((tmp_path / "runs/grid/fedavg-id").glob(f"seed4/{RESULT}"))
    lost.unlink()
    told.clear()
    again = run_bench(grid, tmp_path, tmp_path / "runs", told.append).table
    assert [line.partition(",")[0] for line in told] == ["fedavg-id/seed4: run 5 of 5"]
    scores = [name for name in table.columns if "/" in name]
    assert again.select(scores).equals(table.select(scores))

    # A method of the same name but other settings is another run.
    told.clear()
    changed = METHODS | {"fedavg-id": METHODS["fedavg-id"] | {"rounds": 3}}
    run_bench(BenchSpec.load(written(tmp_path, methods=changed)), tmp_path, tmp_path / "runs", told.append)
    assert [line.partition(":")[0] for line in told] == ["fedavg-id/seed3", "fedavg-id/seed4"]


def test_tables_show_each_view_alone_and_targets_among_drawn_items(tmp_path: Path) -> None:
    small_dataset(tmp_path / "small")
    base = BASE | {
        "views": {"dim": 8, "operators": [], "item_ids": False},
        "local": {"backbone": "cosine"},
        "evaluation": {"ks": [5], "collapse": True, "sampled_candidates": 10, "every": 2},
    }
    methods = {"cosine": {"local": {"backbone": "cosine"}}}
    told = run_bench(BenchSpec.load(written(tmp_path, base=base, methods=methods)), tmp_path, tmp_path / "runs", print)
    text = told.markdown()
    assert "| method | HR@5 | NDCG@5 |\n" in text.partition("among drawn items alone")[2]
    assert "fused HR@5 | fused NDCG@5 | image HR@5" in text
    assert "text separability" in text


def test_people_add_up_to_what_the_devices_reported(tmp_path: Path) -> None:
    """Over two nodes and small blocks, with a best round that is not the last, and with the validation item at test."""
    small_dataset(tmp_path / "small", 30, 150)
    base = BASE | {"rounds": 10, "federation": {"nodes": 2}, "server": {"learning_rate": 0.3}}
    base["evaluation"] = {"every": 1, "ks": [5, 10], "history_at_test": "train+validation"}
    methods = {"history": {"local": {"backbone": "history", "batch_users": 8}}}
    grid = BenchSpec.load(written(tmp_path, base=base, methods=methods, baselines=["ease"]))
    table = run_bench(grid, tmp_path, tmp_path / "runs", lambda line: None).table
    rounds = table.filter(method="history")["selected_round"].to_list()
    assert min(rounds) < 7  # older than the checkpoints that a run keeps
    for method, folder, seed in (("history", "history/seed3", 3), ("history", "history/seed4", 4), ("ease", "ease", 3)):
        path = tmp_path / "runs/grid" / folder / f"people-seed{seed}.parquet"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        people, row = load_people(path), table.filter(method=method, seed=seed).row(0, named=True)
        assert len(people) == 30
        for group, members in (
            ("all", people),
            ("warm", people.filter("warm")),
            ("cold", people.filter(~pl.col("warm"))),
        ):
            for metric in ("hr", "ndcg"):
                reported = row[f"test/{group}/{metric}@10"]
                assert members[metric].mean() == pytest.approx(reported, rel=1e-12 if method == "history" else 1e-4)
        for by in "qf":
            present = [name for name in (f"{by}{n}" for n in range(1, 5)) if row.get(f"test/{name}/users")]
            quartiles = [(row[f"test/{name}/hr@10"], row[f"test/{name}/users"]) for name in present]
            assert sum(rate * users for rate, users in quartiles) / 30 == pytest.approx(row["test/all/hr@10"], rel=1e-4)
        assert (people["frequency"] > 0).equals(people["warm"])  # one test item a person
    assert not list((tmp_path / "runs").rglob("*.safetensors"))  # simulated people's states are not kept


def test_quartiles_never_part_equals_and_coverage_counts_items() -> None:
    activity = [3, 3, 3, 4, 5, 5, 8, 9]
    values = np.arange(8.0)
    table = pl.DataFrame({"activity": activity, "frequency": activity[::-1], "hr": values, "ndcg": values / 2})
    found = names.written(PerUserResults(table, torch.tensor([True, False, False, True])).figures(50))
    assert found["test/all/coverage@50"] == 50
    assert [found[f"test/q{n}/users"] for n in (1, 2, 3, 4)] == [3, 1, 2, 2]
    assert [found[f"test/q{n}/hr@50"] for n in (1, 2, 3, 4)] == [1, 3, 4.5, 6.5]
    assert [found[f"test/q{n}/most_events"] for n in (1, 2, 3, 4)] == [3, 4, 5, 9]
    assert [found[f"test/f{n}/users"] for n in (1, 2, 3, 4)] == [3, 1, 2, 2]
    assert [found[f"test/f{n}/hr@50"] for n in (1, 2, 3, 4)] == [6, 4, 2.5, 0.5]  # the rarest first


def test_the_bootstrap_is_that_of_the_book() -> None:
    values = np.random.default_rng(0).normal(size=(200, 1))
    means = bootstrap(np.concatenate([values, values + 3], axis=1))
    assert means.shape == (10_000, 2)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 3)  # the same people are drawn for every column
    assert means[:, 0].mean() == pytest.approx(values.mean(), abs=0.005)
    assert means[:, 0].std() == pytest.approx(values.std() / 200**0.5, rel=0.03)
    np.testing.assert_array_equal(means, bootstrap(np.concatenate([values, values + 3], axis=1)))


def test_differences_pair_people_by_name_and_average_seeds() -> None:
    random = np.random.default_rng(1)
    users, base = [f"u{n:03d}" for n in range(100)], random.normal(size=100)

    def table(shift: float) -> pl.DataFrame:
        frame = pl.DataFrame({"user": users, "hr": base + shift, "ndcg": base})
        return frame.sample(fraction=1.0, shuffle=True, seed=int(10 * shift))

    alone = pl.DataFrame({"user": ["only a's"], "hr": [100.0], "ndcg": [100.0]})
    tables = {"a": [table(1.0), table(2.0), alone], "b": [table(0.0)], "lost": []}
    found = paired_differences(tables, [("a", "b"), ("a", "lost"), ("a", "unknown")])
    assert [(row["method"], row["minus"]) for row in found] == [("a", "b")]
    row = found[0]
    assert [row["hr"], row["hr_low"], row["hr_high"]] == pytest.approx([1.5, 1.5, 1.5])
    assert [row["ndcg"], row["ndcg_low"], row["ndcg_high"]] == pytest.approx([0, 0, 0])


def test_what_fails_is_left_out_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A rate that diverges is not chosen; a method that always diverges, and a baseline without content, are rows saying so."""
    small_dataset(tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / FEATURES)
    diverging = {"local": {"backbone": "history"}, "choose": {"server.learning_rate": [1e9, 0.01]}}
    methods = {"lost": ONE["history"] | {"rounds": 4, "server": {"learning_rate": 1e9}}, "history": diverging}
    grid = written(tmp_path, methods=methods, baselines=["vbpr", "itemknn"], reference="history")
    told: list[str] = []
    outcome = run_bench(BenchSpec.load(grid, only=[]), tmp_path, tmp_path / "runs", told.append)
    left_out = dict(outcome.table.filter(pl.col("left_out").is_not_null()).select("method", "left_out").rows())
    assert left_out.keys() == {"lost", "vbpr"}
    assert "of 14 users is not finite; lower the learning rates" in left_out["lost"]
    assert "needs features" in left_out["vbpr"]
    assert any(line.startswith("lost/seed3 is left out: round") for line in told)
    chosen = outcome.table.filter(method="history")["chosen"].to_list()
    assert chosen == ["learning_rate=0.01"] * 2
    assert outcome.differences.select("method", "minus").rows() == [("itemknn", "history")]
    text = (tmp_path / "runs/grid/results.md").read_text()
    for line in (
        "| lost | - |",
        "left out: this baseline needs features",
        "| itemknn - history |",
        "warm HR@10",
        "q4 NDCG@10",
    ):
        assert line in text
    means = outcome.means()
    assert means["lost"] == {"left_out": [left_out["lost"]] * 2}
    assert means["itemknn"]["test/all/hr@10"] == pytest.approx(
        outcome.table.filter(method="itemknn")["test/all/hr@10"][0]
    )


def test_several_datasets_and_a_selection(tmp_path: Path) -> None:
    for seed, name in enumerate(("small", "other")):
        small_dataset(tmp_path / name, seed=seed)
    datasets = {"first": {}, "second": {"data": {"folder": "other"}}}
    grid = written(tmp_path, datasets=datasets, methods=METHODS, baselines=["popularity"], seeds=[0])
    bench = BenchSpec.load(grid, only=["fedavg-id", "popularity"])
    outcome = run_bench(bench, tmp_path, tmp_path / "runs", lambda line: None)
    rows = outcome.table.filter(pl.col("method").is_in(["fedavg-id", "history", "popularity"]))
    names = [("first", "fedavg-id"), ("first", "popularity"), ("second", "fedavg-id"), ("second", "popularity")]
    assert rows.select("dataset", "method").rows() == names
    assert rows["test/all/ndcg@10"].n_unique() == 4
    assert outcome.markdown().count("\n# ") + outcome.markdown().startswith("# ") == 2
    # The baseline replaces the trivial baseline of its name, and is worth the same.
    metrics = read_metrics(tmp_path / "runs/grid/first/fedavg-id/seed0")
    baseline = next(line["scores"] for line in metrics if line["kind"] == "baselines")["popularity/test/all/ndcg@10"]
    assert rows["test/all/ndcg@10"][1] == pytest.approx(baseline, rel=1e-4)


def test_quick_settings_are_laid_over(tmp_path: Path) -> None:
    quick = BenchSpec.load(written(tmp_path, baselines=["pgl"]), quick=True)
    assert quick.name == "grid-quick"
    assert all(quick.settings("", method, {}, 3).rounds == 1 for method in quick.methods)
    assert quick.runs() == 3  # one seed, the first choice, no search


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sedes": [1]}, r"grid\.yaml: unknown key 'sedes'; the nearest known one is 'seeds'"),
        ({"seeds": []}, r"grid\.yaml: seeds: "),
        ({"seeds": None}, "seeds: "),
        ({"methods": None}, "methods: "),
        ({"methods": {"x": {"seeds": []}}}, r"methods\.x\.seeds: "),
        ({"methods": {"x": {"local": {"backbone": "bert"}}}}, r"methods\.x: local\.backbone"),
        ({"methods": {"x": {"choose": {"local.learning_rate": [0.1, -1]}}}}, r"methods\.x: local\.learning_rate"),
        (
            {"methods": {"x": {"choose": {"local.learning_rate": 0.1}}}},
            r"methods\.x\.choose\.local\.learning_rate: .* list",
        ),
        ({"methods": {"x": {"data": {"folder": "other"}}}}, r"methods\.x has other data"),
        (
            {"base": {"data": {"folder": "small", "cold_items": 0.1}}, "methods": {"x": {}, "y": {"seeds": [0]}}},
            "all methods must have the same seeds",
        ),
        ({"methods": {"../x": {}}}, "'../x' is no name"),
        ({"baselines": ["popularty"]}, "there is no 'popularty'; the nearest known one is 'popularity'"),
        ({"methods": {"ease": {}}, "baselines": ["ease"]}, "'ease' is a baseline"),
        ({"reference": "fedavg"}, "differences: there is no 'fedavg'"),
        ({"differences": [["history"]]}, r"differences\.0\.1: Field required"),
    ],
)
def test_a_malformed_grid_is_refused_before_anything_runs(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchSpec.load(written(tmp_path, **changes))


def test_only_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--only: there is no 'ease'"):
        BenchSpec.load(written(tmp_path), only=["ease"])


OTHER_PAPERS = ("vlm2rec", "perpeft")
FEDVLR = [path for path in sorted((ROOT / "benchmarks").glob("*/table2.yaml")) if path.parent.name not in OTHER_PAPERS]


@pytest.mark.parametrize("grid", FEDVLR, ids=lambda path: path.parent.name)
def test_the_published_grids_compare_what_they_should(grid: Path) -> None:
    bench = BenchSpec.load(grid)
    backbones = ("fedavg", "fcf", "fedncf", "pfedrec", "fedrap", "history")
    assert {f"{name}-{kind}" for name in backbones for kind in ("id", "mlp", "views")} <= bench.methods.keys()
    assert {(f"{name}-views", f"{name}-{kind}") for name in backbones for kind in ("id", "mlp")} <= set(bench.pairs)
    elsewhere = {"lightgcn", "lattice", "sasrec", "gru4rec"}  # peers of other papers: ml-latest-small/sequences.yaml
    assert bench.baselines == tuple(name for name in BASELINES if name not in elsewhere)
    assert grid.read_text().startswith(f"# tessera bench benchmarks/{grid.parent.name}/table2.yaml --data DATA")


PUBLISHED = ("beauty-2023", "gift-cards-2023", "bili-dance", "bili-food", "bili-movie")


def published_files(folder: Path, people: int = 12, items: int = 9) -> None:
    """Write a dataset as Amazon's 2023 release or NineRec publish theirs: each person has had all items but a few."""
    folder.mkdir(parents=True)
    events = [(person, item) for person in range(people) for item in range(items) if (person + item) % 4]
    if folder.name.startswith("bili"):
        name = folder.name.title().replace("-", "_")
        rows = (f"u{person},v{item},{100 * item + person}\n" for person, item in events)
        (folder / f"{name}_pair.csv").write_text("".join(rows))
        titles = (f"v{item},第{item}部,Film number {item}\n" for item in range(items))
        (folder / f"{name}_item.csv").write_text("".join(titles))
        (folder / f"{name}_cover").mkdir()
        for item in range(items):
            Image.new("RGB", (24, 16), (25 * item, 80, 200 - 20 * item)).save(folder / f"{name}_cover" / f"v{item}.jpg")
        return
    reviews = [
        {"user_id": f"u{person}", "parent_asin": f"B{item}", "rating": 5.0, "timestamp": 1_588_615_855_000 + 100 * item}
        for person, item in events
    ]
    meta = [
        {"parent_asin": f"B{item}", "title": f"Thing {item}", "description": [], "features": ["Soft"]}
        for item in range(items)
    ]
    (folder / "Things.jsonl").write_text("\n".join(map(json.dumps, reviews)))
    (folder / "meta_Things.jsonl").write_text("\n".join(map(json.dumps, meta)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_papers_other_datasets_run_from_files_as_they_are_published(tmp_path: Path, name: str) -> None:
    published_files(tmp_path / name)
    grid = ROOT / "benchmarks" / name / "table2.yaml"
    bench = BenchSpec.load(grid, quick=True, only=["fcf-id", "history-views", "popularity"])
    outcome = run_bench(bench, tmp_path, tmp_path / "runs", lambda line: None)
    rows = outcome.table.filter(pl.col("method").is_in(["fcf-id", "history-views", "popularity"]))
    assert rows["left_out"].null_count() == rows.height == 3
    assert rows["test/all/hr@50"].to_list() == [100.0] * 3  # of nine items


def test_a_grid_extends_another(tmp_path: Path) -> None:
    first = written(tmp_path, baselines=["popularity"])
    second = tmp_path / "second.yaml"
    second.write_text("name: second\nextends: grid.yaml\nbase: {rounds: 7}\n")
    one, other = BenchSpec.load(first), BenchSpec.load(second)
    assert (other.name, other.base["rounds"], other.base["data"]) == ("second", 7, one.base["data"])
    assert (other.methods, other.baselines) == (one.methods, one.baselines)
    for wrong, message in (("3", "the path of another grid, .* not 3"), ("second.yaml", "extends another one itself")):
        (tmp_path / "third.yaml").write_text(f"name: third\nextends: {wrong}\n")
        with pytest.raises(ConfigError, match=rf"third\.yaml: extends: .*{message}"):
            BenchSpec.load(tmp_path / "third.yaml")


def test_a_run_can_ask_for_features_of_raw_texts(tmp_path: Path) -> None:
    raw = tmp_path / "cards"
    raw.mkdir()
    reviews = [{"reviewerID": "ann", "asin": name, "overall": 5.0, "unixReviewTime": 1} for name in "abc"]
    (raw / "reviews.json").write_text("\n".join(map(json.dumps, reviews)))
    (raw / "meta.json").write_text("\n".join(json.dumps({"asin": name, "title": f"Card {name}"}) for name in "abc"))
    wanted = {"folder": "cards", "kind": "amazon", "min_user_events": 0, "min_item_events": 0}
    for encode, modalities in (("builtin", {"text"}), (None, set())):
        folder = prepared_dataset(DataSettings(**wanted, encode=encode), tmp_path, tmp_path / "prepared")
        assert load_catalogue(folder).features.keys() == modalities


def test_the_installed_command_finds_the_peers_and_ends_with_json(tmp_path: Path) -> None:
    small_dataset(tmp_path / "small")
    command = [
        Path(sys.executable).parent / "tessera",
        "bench",
        written(tmp_path, baselines=["popularity"]),
        "--data",
        tmp_path,
    ]
    done = subprocess.run([*command, "--only", "popularity"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "| popularity |" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["means"]["popularity"]["test/all/coverage@10"] > 0
    assert "popularity" in (tmp_path / found["folder"] / "report.html").read_text()
