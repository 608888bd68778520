"""python -m tessera.benchmarks.zero_shot --data DATA [--seeds 0 1 2] [--out FOLDER] [--quick]      (DATA/ml-latest-small)

Ranks a catalogue by what another one's people taught (VLM2Rec's Table 6). ml-latest-small is cut in two by seed, items and
people both, so that neither half shares an item or a person with the other; in each, people and items with fewer than five
events are left out, again until none is left. Encoders learn on the first half by contents alone; the second half is ranked as
it is: its people train nothing, and the round is chosen on validation in the first.

Rows, all of the second half's people and items: random, popularity there, features as they are (content-all); the first half's
start, where contents predict its interactions' singular vectors; linear maps over features that stay, and encoders that learn,
after training in the first half; and after training in the second one itself, which is the most that there is to reach.
--quick takes a small shop and few rounds. Ends with one line of JSON.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tessera.client import cohort
from tessera.client.evaluation import evaluate
from tessera.client.histories import Histories
from tessera.common.config.loading import overlaid, parse_settings
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.folder_kinds import DATASET
from tessera.common.data.interactions import Interactions, load_interactions
from tessera.common.data.splits import make_split
from tessera.common.datasets import convert_shop
from tessera.common.datasets.dataset_folder import write_description
from tessera.common.metrics.names import ALL, HR, NDCG, SAMPLED, TEST, MetricName, Scores
from tessera.common.metrics.ranking import percentages
from tessera.common.metrics.records import ResultRecord
from tessera.common.protocol.messages import VIEWS
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import read_json
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.live.content_views import content_views
from tessera.server.live.continuation import read_source

FEWEST = 5
"""Events that a person and an item have at least, within a half."""
K = 50
FIGURES = {
    "hr": MetricName(TEST, ALL, HR, K),
    "ndcg": MetricName(TEST, ALL, NDCG, K),
    "hr_sampled": MetricName(TEST, SAMPLED, HR, 10),
    "ndcg_sampled": MetricName(TEST, SAMPLED, NDCG, 10),
}
"""Of the whole catalogue, and of 100 drawn items (VLM2Rec's protocol)."""
TRIVIAL = ("random", "popularity", "content-all")
START: dict[str, Any] = {"rounds": 1, "server": {"learning_rate": 1e-9}}
"""Laid over the settings where nothing is to be learnt but the start."""
LINEAR: dict[str, Any] = {"views": {"encoder": "frozen"}}
SETTINGS: dict[str, Any] = {
    "name": "zero-shot",
    "data": {"folder": "ml-latest-small", "kind": "movielens", "min_user_events": 5, "min_item_events": 5},
    "rounds": 40,
    "views": {
        "operators": [],
        "item_ids": False,
        "encoder": {"name": "bottleneck", "hidden": 256},
        "spectral_rounds": 20,
        "spectral_scale": 15,
    },
    "local": {
        "backbone": {"name": "cosine", "temperature": 0.1},
        "loss": {"name": "next", "next_item_samples": 4},
        "recency": 1,
        "history_mask": 0.0,
        "learning_rate": 0.001,
        "batch_users": 64,
    },
    "server": {"learning_rate": 0.003, "weight_decay": 1.0, "schedule": "linear"},
    "evaluation": {"every": 10, "ks": [10, K], "sampled_candidates": 100},
}
QUICK: dict[str, Any] = {
    "data": {"folder": "shop", "kind": "converted"},
    "rounds": 2,
    "evaluation": {"every": 1},
    "views": {"encoder": {"hidden": 8}},
}


@dataclass(frozen=True)
class Halves:
    """Folders of two datasets that share neither an item nor a person."""

    first: Path
    second: Path


class Figure(TypedDict):
    """A figure of a row, in %."""

    mean: float
    seeds: list[float]


def cut(dataset: Path, out: Path, seed: int) -> Halves:
    """Write both halves of a dataset, drawn by seed."""
    catalogue, about = load_catalogue(dataset), read_json(dataset / DATASET)
    events = load_interactions(dataset, len(catalogue))
    folders = Halves(out / "first", out / "second")
    items, people = _in_second("items", len(catalogue), seed), _in_second("people", len(events.users), seed)
    for second, folder in enumerate((folders.first, folders.second)):
        kept, found = enough(items == second, people == second, events)
        catalogue.take(np.flatnonzero(kept)).save(folder)
        found.save(folder)
        write_description(folder, {name: about[name] for name in ("name", "kind", "source", "filters", "rules")})
    return folders


def _in_second(of: str, count: int, seed: int) -> NDArray[np.bool_]:
    """Which half of the items or of the people are in the second dataset, [count]."""
    draws = counter_rng.uniform(counter_rng.key("two catalogues", seed, of), torch.arange(count))
    return (draws.argsort(stable=True).argsort() >= count // 2).numpy()


def enough(
    items: NDArray[np.bool_], people: NDArray[np.bool_], events: Interactions
) -> tuple[NDArray[np.bool_], Interactions]:
    """Of these `items` [n_items] those that are left once everybody and everything has `FEWEST` events of them and of these
    `people` [n_users], and the events, by the new rows of the items."""
    items, people = items.copy(), people.copy()
    while True:
        there = items[events.items] & people[events.owners]
        bought = np.bincount(events.items[there], minlength=len(items)) >= FEWEST
        buying = np.bincount(events.owners[there], minlength=len(people)) >= FEWEST
        if not (items & ~bought).any() and not (people & ~buying).any():
            break
        items, people = items & bought, people & buying
    rows = np.flatnonzero(people)
    place, offsets = np.cumsum(items) - 1, np.concatenate([[0], np.cumsum(there)])[events.offsets]
    kept = Interactions(events.users, offsets, place[events.items[there]], events.timestamps[there], int(items.sum()))
    return items, kept.take(rows)


def train(settings: Settings, dataset: Path, run: Path) -> ResultRecord:
    """Carry out a run."""
    named = settings.model_copy(update={"name": run.name})
    return run_job(make_job(named, dataset, run, resume=False, overwrite=True), "inline", lambda line: None)


def transferred(run: Path, halves: Halves, settings: Settings) -> Scores:
    """How the people of the second half are ranked for by what a run in the first one learnt, with nothing trained there."""
    source, other = read_source(run), load_catalogue(halves.second)
    views = content_views(source.settings, source.tensors, load_catalogue(halves.first), other, halves.second)
    split = make_split(load_interactions(halves.second, len(other)), settings.data, settings.seed)
    private = cohort.start_state(split.users, settings.local, views, settings.seed).parameters

    def scorer(people: Histories) -> torch.Tensor:
        return cohort.scores(private, {VIEWS: views}, people, settings.local)[0]

    return percentages(evaluate(scorer, split, settings.evaluation, None))


def compare(content: dict[str, Any], dataset: Path, out: Path, say: Callable[[str], None]) -> dict[str, Scores]:
    """Train and rank with one seed; scores by row of the table."""

    def settings(changes: dict[str, Any]) -> Settings:
        return parse_settings(overlaid(content, changes), "zero_shot")

    base, halves = settings({}), cut(dataset, out, content["seed"])
    own = train(base, halves.second, out / "own")
    found: dict[str, Scores] = {
        name: {one.of(""): value for one, value in own.baselines.items() if one.baseline == name} for name in TRIVIAL
    }
    for row, changes in (("start of the other", START), ("linear, the other", LINEAR), ("adapted, the other", {})):
        run = out / row.replace(" ", "-").replace(",", "")
        train(settings(changes), halves.first, run)
        found[row] = transferred(run, halves, base)
        say(f"seed {base.seed}: {row}, NDCG@{K} {found[row][FIGURES['ndcg']]:.2f}")
    return found | {"adapted, its own": own.scores}


def measure(data: Path | None, seeds: Sequence[int], out: Path, *, quick: bool) -> None:
    """Cut, train, rank, print the table, and end with one line of JSON."""
    content = overlaid(SETTINGS, QUICK) | {"data": QUICK["data"]} if quick else SETTINGS
    if quick:
        convert_shop(out / "shop", 160, 60)
        dataset = out / "shop"
    else:
        dataset = prepared_dataset(parse_settings(content, "zero_shot").data, data, out / "prepared")
    console = Console(highlight=False)
    say = partial(console.print, soft_wrap=True)
    by_seed = [compare(content | {"seed": seed}, dataset, out / f"seed-{seed}", say) for seed in seeds]
    rows: dict[str, dict[str, Figure]] = {}
    for row in by_seed[0]:
        each = {name: [round(one[row][figure], 2) for one in by_seed] for name, figure in FIGURES.items()}
        rows[row] = {name: Figure(mean=round(fmean(values), 2), seeds=values) for name, values in each.items()}
    table = Table("the second half by", *(f"{one.group} {one.measure}" for one in FIGURES.values()))
    for row, cells in rows.items():
        told = [f"{cell['mean']:.2f} ({', '.join(map(str, cell['seeds']))})" for cell in cells.values()]
        table.add_row(row, *told)
    console.print(table)
    counts = [read_json(out / f"seed-{seed}" / half / DATASET)["counts"] for seed in seeds
              for half in ("first", "second")]  # fmt: skip
    print(json.dumps({"benchmark": "zero_shot", "seeds": seeds, "halves": counts, "rows": rows}))


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="a folder for datasets and runs; a temporary one by default")
    parser.add_argument("--quick", action="store_true", help="a small generated shop and few rounds")
    asked = parser.parse_args()
    with ExitStack() as kept:
        out = asked.out or Path(kept.enter_context(TemporaryDirectory(prefix="tessera-zero-shot-")))
        measure(asked.data, asked.seeds, out, quick=asked.quick)


if __name__ == "__main__":
    main()
