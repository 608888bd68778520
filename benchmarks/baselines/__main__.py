"""python -m tessera.benchmarks.baselines --data DATA --dataset ml-latest-small [--baselines ease,vbpr] [--seeds 0,1] [--quick]

Measures centralised baselines on the federation's split, by its tie-aware HR and NDCG.

Hyperparameters and epochs are chosen by NDCG@50 on validation with the first seed; test is read once, for what was chosen. DATA
is the folder that holds the datasets (or TESSERA_DATA). Prints a row for each baseline as it is done and ends with one line of
JSON; progress goes to stderr.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import get_args

import torch
from pydantic import ValidationError

from tessera.benchmarks.baselines.selection import BASELINES, Result, compare
from tessera.common.config.settings import DataSettings, EvaluationSettings, SplitName
from tessera.common.data.catalogue import Catalogue, load_catalogue
from tessera.common.data.interactions import Split, load_interactions
from tessera.common.data.splits import make_split
from tessera.common.errors import ConfigError, TesseraError
from tessera.deploy.provisioning.datasets import check_split, prepared_dataset

KNOWN = {
    "ml-latest-small": {"kind": "movielens", "split": "leave-one-out"},
    "ku": {"kind": "fedvlr", "split": "given"},
    "amazon-beauty-2014": {"kind": "sequences", "split": "leave-one-out"},
}
COLUMNS = {
    "valid HR": "validation/all/hr@50",
    "NDCG": "validation/all/ndcg@50",
    "test HR": "test/all/hr@50",
    "NDCG ": "test/all/ndcg@50",
    "warm HR": "test/warm/hr@50",
    "NDCG  ": "test/warm/ndcg@50",
    "cold HR": "test/cold/hr@50",
    "NDCG   ": "test/cold/ndcg@50",
}


def main() -> None:
    """Compare the baselines that were asked for."""
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    try:
        split, catalogue = load(arguments)
    except TesseraError as error:
        raise SystemExit(str(error)) from None
    print(
        f"{arguments.dataset}: {len(split.users)} users, {len(catalogue)} items, {len(split.train_items)} training events"
    )
    print(header())
    evaluation = EvaluationSettings(ks=(10, 20, 50), history_at_test=arguments.history_at_test)
    results = []
    for name in arguments.baselines:
        try:
            results.append(compare(name, split, catalogue, arguments.seeds, evaluation, arguments.quick))
            print(row(results[-1]), flush=True)
        except TesseraError as error:
            print(f"{name:<11} left out: {error}", flush=True)
    facts = {"dataset": arguments.dataset, "threads": arguments.threads, "history_at_test": arguments.history_at_test}
    print(json.dumps(facts | {"baselines": {result.name: asdict(result) for result in results}}))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds the datasets")
    parser.add_argument("--dataset", default="ml-latest-small")
    parser.add_argument("--kind", help="what the raw dataset is; known for " + ", ".join(KNOWN))
    parser.add_argument("--split", choices=[name for name in get_args(SplitName) if name != "everything"])
    parser.add_argument("--validation-from", help="with --split time: when validation begins, such as 2018-01-01")
    parser.add_argument("--test-from", help="with --split time: when the test begins")
    parser.add_argument("--baselines", type=names, default=list(BASELINES))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--history-at-test", choices=("train", "train+validation"), default="train")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="no search, three epochs: does it run?")
    return parser.parse_args()


def names(text: str) -> list[str]:
    """Split a list of baselines. Raises `ArgumentTypeError` that names one that does not exist."""
    unknown = [name for name in text.split(",") if name not in BASELINES]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no baseline {unknown[0]!r}, only {', '.join(BASELINES)}")
    return text.split(",")


def load(arguments: argparse.Namespace) -> tuple[Split, Catalogue]:
    """Convert the dataset if that was not done before, and split it as a run of the federation would."""
    known = KNOWN.get(arguments.dataset, {"kind": "converted"})
    asked = ("kind", "split", "validation_from", "test_from")
    given = {name: value for name in asked if (value := getattr(arguments, name)) is not None}
    try:
        settings = DataSettings.model_validate({"folder": arguments.dataset} | known | given)
    except ValidationError as error:
        raise ConfigError("; ".join(one["msg"].removeprefix("Value error, ") for one in error.errors())) from None
    folder = prepared_dataset(settings, arguments.data)
    if arguments.dataset not in KNOWN:
        check_split(folder, settings)
    catalogue = load_catalogue(folder)
    interactions = load_interactions(folder, len(catalogue))
    return make_split(interactions, settings, arguments.seeds[0], catalogue.retired), catalogue


def header() -> str:
    """The table's first line."""
    return " ".join(
        [f"{'baseline, % @50':<11}", *(f"{title.strip():>11}" for title in COLUMNS), f"{'fit s':>7}", "chosen"]
    )


def row(result: Result) -> str:
    """One baseline's line: mean and, over several seeds, standard deviation in percent."""
    cells = []
    for figure in COLUMNS.values():
        mean, deviation = result.mean(figure), result.deviation(figure)
        cell = "-" if mean is None else f"{100 * mean:.2f}"
        cells.append(f"{cell if deviation is None else f'{cell}±{100 * deviation:.2f}':>11}")
    chosen = ", ".join(f"{name} {value:g}" for name, value in result.chosen.items())
    return " ".join([f"{result.name:<11}", *cells, f"{result.mean('seconds') or 0:>7.1f}", chosen])


if __name__ == "__main__":
    main()
