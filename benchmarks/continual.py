"""TESSERA_DATA=DATA python -m tessera.benchmarks.continual [OUT] [--seeds 0 1 2] [--quick]      (DATA/ml-latest-small)

A catalogue and people that grow by time: half of the items and half of the people at first, by their first events, the rest in
four steps. After each step, NDCG@50 of three models on everybody and everything that is there: trained from scratch, continued
from the step before with a fifth of the rounds, and the first one standing still, which places new items by their contents and
trains nothing any more. Rounds are all that go over the devices, those of the spectral start and of the sum that places new
items (views.fold_in) too, and the one that is reported is chosen on validation; seconds are of the whole run. With several
seeds the table has their means. --quick takes a small shop, two steps and few rounds.

Ends with one line of JSON.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tessera.common.config.loading import parse_settings
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue, Standard, load_catalogue
from tessera.common.data.folder_kinds import DATASET
from tessera.common.data.interactions import Interactions, load_interactions
from tessera.common.datasets import convert_shop
from tessera.common.datasets.dataset_folder import write_description
from tessera.common.metrics.names import ALL, NDCG, TEST, MetricName
from tessera.common.metrics.records import EvaluationRecord, read_records, read_result
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.provisioning.datasets import prepared_dataset

STEPS = 4
FIRST = 0.5
"""Share of the items, and of the people, that are there at first."""
K = 50
SETTINGS: dict[str, Any] = {
    "name": "continual",
    "data": {"folder": "ml-latest-small", "kind": "movielens", "min_user_events": 5, "min_item_events": 5},
    "rounds": 20,
    "views": {"operators": [], "spectral_rounds": 10, "spectral_scale": 20, "fold_in": True},
    "local": {"backbone": "history", "loss": "softmax", "history_mask": 0.5, "learning_rate": 0.001},
    "server": {"learning_rate": 0.003, "weight_decay": 1.0},
    "evaluation": {"every": 2, "ks": [K], "baselines": False},
    "federation": {"nodes": 1, "checkpoint_every": 20},
}
QUICK: dict[str, Any] = {
    "data": {"folder": "shop", "kind": "converted"},
    "rounds": 4,
    "views": {"operators": [], "spectral_rounds": 6, "spectral_scale": 20, "fold_in": True},
}


@dataclass(frozen=True)
class Outcome:
    """What a run came to: test NDCG in percent, and seconds."""

    ndcg: float
    seconds: float


def order(events: Interactions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The items and the people, each by the time of their first events."""
    items = np.full(events.n_items, np.iinfo(np.int64).max)
    np.minimum.at(items, events.items, events.timestamps)
    return np.argsort(items, kind="stable"), np.argsort(events.timestamps[events.offsets[:-1]], kind="stable")


def versions(dataset: Path, out: Path, steps: int) -> list[Path]:
    """A dataset folder for each step: each catalogue extends the one before."""
    catalogue, about = load_catalogue(dataset), read_json(dataset / DATASET)
    events = load_interactions(dataset, len(catalogue))
    items, people = order(events)
    row_of = np.argsort(items)
    moved = replace(events, items=row_of[events.items])
    found: list[Path] = []
    standards: dict[str, Standard] = {}
    for step in range(steps + 1):
        share = FIRST + (1 - FIRST) * step / steps
        n_items, folder = round(share * len(items)), out / f"version-{step}"
        there = catalogue.take(items[:n_items])
        standards = standards or {name: one.own_standard() for name, one in there.features.items()}
        features = {name: replace(one, standard=standards[name]) for name, one in there.features.items()}
        Catalogue(there.items, there.titles, there.texts, there.images, features).save(folder)
        known = moved.take(people[: round(share * len(people))]).of_first(n_items)
        known.take(np.flatnonzero(np.diff(known.offsets))).save(folder)
        write_description(folder, {name: about[name] for name in ("name", "kind", "source", "filters", "rules")})
        found.append(folder)
    return found


def train(settings: Settings, dataset: Path, run: Path, continues: Path | None = None) -> Outcome:
    """Carry out a run."""
    began = time.monotonic()
    named = settings.model_copy(update={"name": run.name})
    run_job(make_job(named, dataset, run, False, True, continues), "inline", lambda line: None)
    result = read_result(run)
    return Outcome(result.scores[MetricName(TEST, ALL, NDCG, K)], time.monotonic() - began)


def still(settings: Settings, dataset: Path, run: Path, first: Path) -> float:
    """Test NDCG of the first model on what is there now, before anything is trained."""
    views = settings.views.model_copy(update={"fold_in": False})
    train(settings.model_copy(update={"rounds": 1, "views": views}), dataset, run, first)
    before = next(line for line in read_records(run) if isinstance(line, EvaluationRecord))
    return before.scores[MetricName(TEST, ALL, NDCG, K)]


def compare(settings: Settings, folders: list[Path], out: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Train all three for each step; return the rows of the table."""
    few, rows = settings.model_copy(update={"rounds": fifth(settings) - settings.views.fold_in}), []
    first = last = out / "scratch-0"
    train(settings, folders[0], first)
    for step, folder in enumerate(folders[1:], 1):
        scratch = train(settings, folder, out / f"scratch-{step}")
        continued, last = train(few, folder, out / f"continued-{step}", last), out / f"continued-{step}"
        counts = read_json(folder / DATASET)["counts"]
        row = {
            "step": step,
            "items": counts["items"],
            "people": counts["users"],
            "scratch": scratch.ndcg,
            "continued": continued.ndcg,
            "still": still(settings, folder, out / f"still-{step}", first),
            "s_scratch": scratch.seconds,
            "s_continued": continued.seconds,
        }
        rows.append(row)
        say(json.dumps({"seed": settings.seed} | row))
    return rows


def means(by_seed: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of the table, each the mean over seeds, with the share of scratch that is reached."""
    found = []
    for rows in zip(*by_seed, strict=True):
        row = {name: round(sum(one[name] for one in rows) / len(rows), 2) for name in rows[0]}
        row |= {name: rows[0][name] for name in ("step", "items", "people")}
        found.append(row | {"share": round(row["continued"] / row["scratch"], 3)})
    return found


def fifth(settings: Settings) -> int:
    """A fifth of the rounds of a run from scratch, those of its spectral start counted."""
    return (settings.rounds + settings.views.spectral_rounds) // 5


def main() -> None:
    """Train all of them, print the table, and end with one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="a folder for datasets and runs; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="a small generated shop, two steps and few rounds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked = parser.parse_args()
    out = asked.out or Path(mkdtemp(prefix="tessera-continual-"))
    settings = parse_settings(SETTINGS | (QUICK if asked.quick else {}), "continual")
    if asked.quick:
        convert_shop(out / "shop", 100, 30)
    dataset = out / "shop" if asked.quick else prepared_dataset(settings.data, None, out / "prepared")
    console = Console(highlight=False)
    folders = versions(dataset, out, 2 if asked.quick else STEPS)
    say = partial(console.print, soft_wrap=True)
    seeded = [settings.model_copy(update={"seed": seed}) for seed in asked.seeds]
    rows = means([compare(one, folders, out / f"runs-{one.seed}", say) for one in seeded])
    rounds = {"scratch": settings.rounds + settings.views.spectral_rounds, "continued": fifth(settings)}
    title = f"NDCG@{K} in percent; {rounds['scratch']} rounds from scratch, {rounds['continued']} continued"
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    if not asked.out:
        shutil.rmtree(out)
    least = min(row["share"] for row in rows)
    print(json.dumps({"seeds": asked.seeds, "rounds": rounds, "least_share": least, "steps": rows}))


if __name__ == "__main__":
    main()
