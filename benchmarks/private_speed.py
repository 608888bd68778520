"""python -m tessera.benchmarks.private_speed [--data FOLDER] [--threads 1] [--rounds 2] [--twin 20]

Measures the CPU seconds of a local training round with everybody clipped, beside those of the round without privacy.

The third figure is the naive twin, which trains person by person: timed on `--twin` people spread over the lengths of history,
and scaled to all. Settings are those of benchmarks/ml-latest-small: each backbone with the loss it is used with. CPU seconds,
not seconds: what else runs on the machine counts less. Ends with one line of JSON. MovieLens is found in --data or
TESSERA_DATA.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tessera.benchmarks.cohort_speed import round_
from tessera.client import cohort
from tessera.client.per_person.training import CohortTraining
from tessera.client.private_state import PrivateState
from tessera.client.recommendation import blocks
from tessera.client.transforms import Clip, Origin, Transforms
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import Split, load_interactions
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.strategies.fedvlr import FedVLR

CLIP = 0.5
DATA = {"folder": "ml-latest-small", "kind": "movielens"}
CONFIGS: dict[str, dict[str, Any]] = {
    "history softmax": {"backbone": "history", "loss": "softmax", "local_epochs": 1, "learning_rate": 0.001},
    "history next": {
        "backbone": "history", "loss": "next", "recency": 1, "history_mask": 0.0, "learning_rate": 0.001, "batch_users": 32,
    },
    "fedavg bce": {"backbone": "fedavg", "loss": "bce", "local_epochs": 5, "history_mask": 0.0},
    "fcf squares": {"backbone": "fcf", "loss": "squares", "history_mask": 0.0, "batch_users": 32},
    "pfedrec bce": {
        "backbone": "pfedrec", "loss": "bce", "history_mask": 0.0, "optimizer": "sgd", "learning_rate": 1.0, "batch_users": 32,
    },
    "fedncf bce": {"backbone": "fedncf", "loss": "bce", "local_epochs": 2, "history_mask": 0.0, "batch_users": 32},
    "fedrap bce": {
        "backbone": "fedrap", "loss": "bce", "history_mask": 0.0, "optimizer": "sgd", "learning_rate": 1.0, "batch_users": 32,
    },
}  # fmt: skip
Train = Callable[[PrivateState, Split], object]


def main() -> None:
    """Time the three for each configuration, print a table and then JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--twin", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=CONFIGS, default=list(CONFIGS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'':18}{'plain s':>10}{'clipped s':>11}{'ratio':>8}{'twin s':>9}{'twin / clipped':>16}")
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        for name in arguments.only:
            row = measure(name, arguments.data, Path(cache), arguments.rounds, arguments.twin)
            rows.append(row)
            cells = f"{row['plain_s']:>10}{row['clipped_s']:>11}{row['ratio']:>8}{row['twin_s']:>9}"
            print(f"{name:18}{cells}{row['twin_to_clipped']:>16}", flush=True)
    worst = max(row["ratio"] for row in rows)
    print(json.dumps({"threads": arguments.threads, "worst_ratio": worst, "configs": rows}))


def measure(name: str, data: Path | None, cache: Path, rounds: int, n_twin: int) -> dict[str, Any]:
    """The median CPU seconds of a round of each kind."""
    settings = Settings.model_validate({"name": "speed", "data": DATA, "local": CONFIGS[name]})
    folder = prepared_dataset(settings.data, data, cache)
    catalogue = load_catalogue(folder)
    split = load_interactions(folder, len(catalogue)).split()
    sent = {name: value.float() for name, value in FedVLR(settings, catalogue).build_views().items()}
    method, clipping = CohortTraining(sent, settings.local, 0, 1), Transforms([Clip(CLIP)])
    people = [
        (cohort.start_state(block.users, settings.local, sent["views"], 0), block)
        for block in blocks(split, settings.local.batch_users)
    ]

    def clipped(state: PrivateState, block: Split) -> object:
        return clipping.train(method, state, block, Origin(0, 1))

    plain_s, clipped_s = (seconds(train, people, rounds) for train in (method.together, clipped))
    chosen = np.argsort(np.diff(split.offsets))[np.linspace(0, len(split.users) - 1, n_twin).astype(int)]
    some = [split.take(np.array([row])) for row in chosen]
    each = [(cohort.start_state(one.users, settings.local, sent["views"], 0), one) for one in some]
    twin_s = seconds(method.together, each, 1) * len(split.users) / n_twin
    return {
        "name": name, "people": len(split.users), "plain_s": round_(plain_s), "clipped_s": round_(clipped_s),
        "ratio": round(clipped_s / plain_s, 2), "twin_s": round_(twin_s), "twin_to_clipped": round(twin_s / clipped_s, 1),
    }  # fmt: skip


def seconds(train: Train, people: list[tuple[PrivateState, Split]], rounds: int) -> float:
    """Median over some rounds, after one that does not count; each trains everybody from the same state."""
    found = []
    for _ in range(rounds + 1):
        started = time.process_time()
        for state, block in people:
            train(state, block)
        found.append(time.process_time() - started)
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
