"""python -m tessera.benchmarks.sequence_speed [--data FOLDER] [--people 64] [--threads 1]

Measures the seconds of a local step of SASRec and GRU4Rec that reads each person's events once, beside one that reads them
again for each event that is asked for. ml-latest-small, item ids alone, 64 dimensions, 8 events asked of a person. Ends with
JSON.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tessera.client import cohort
from tessera.client.histories import Histories, histories
from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import load_interactions
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.strategies.fedvlr import FedVLR

DATA = {"folder": "ml-latest-small", "kind": "movielens", "min_user_events": 5, "min_item_events": 5}
VIEWS: dict[str, list[str]] = {"operators": [], "modalities": []}


class Apart(Histories):
    """Histories whose beginnings know nothing of each other."""

    def cuts(self, per_user: int, salt: int, window: int | None = None) -> tuple[Histories, Histories]:
        """The same, and each is read by itself."""
        known, asked = super().cuts(per_user, salt, window)
        return replace(known, cut=None), asked


def main() -> None:
    """Time both ways of both models, and History, which reads no sequence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--people", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models = {"history": {}, "sasrec": {"length": 50}, "gru4rec": {"length": 50}}
    found = {name: measure(arguments, {"name": name, **own}) for name, own in models.items()}
    for name, (once, again) in found.items():
        print(f"{name}: {once:.3f} s once, {again:.3f} s again for each event, {again / once:.1f} times")
    print(json.dumps({"people": arguments.people, "threads": arguments.threads, "seconds": found}))


def measure(arguments: argparse.Namespace, backbone: dict[str, object]) -> tuple[float, float]:
    """The median seconds of a step that reads events once, and of one that reads them for each event asked."""
    local = {"backbone": backbone, "loss": "next", "recency": 1.0, "history_mask": 0.0}
    settings = Settings.model_validate({"name": "speed", "data": DATA, "views": VIEWS, "local": local})
    folder = prepared_dataset(settings.data, arguments.data)
    catalogue = load_catalogue(folder)
    split = load_interactions(folder, len(catalogue)).split(given=False).take(np.arange(arguments.people))
    sent = {name: value.float() for name, value in FedVLR(settings, catalogue).build_views().items()}
    state, people = cohort.start_state(split.users, settings.local, sent["views"], seed=0), histories(split)
    taken: tuple[list[float], list[float]] = [], []
    for _ in range(arguments.steps):  # in turn, so that what else runs slows both alike
        for seconds, kind in zip(taken, (people, Apart(**vars(people))), strict=True):
            started = time.perf_counter()
            cohort.train(state, sent, kind, settings.local, 0, 1)
            seconds.append(time.perf_counter() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])


if __name__ == "__main__":
    main()
