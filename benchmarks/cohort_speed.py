"""python -m tessera.benchmarks.cohort_speed [--data FOLDER] [--threads 1]

Measures the seconds of a local training round of all users at once, and of the same round with one user after the other.

The second is `reference_client`: for each user a deep copy, an optimiser and a loop. KU, 204 users, 5 local epochs, BCE with 4
negatives. Ends with one line of JSON. KU is found in --data or TESSERA_DATA; without either a generated set of the same size
stands in, and the JSON says so.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tessera.benchmarks.reference_client import NaiveClient, Received, personalized_refinement
from tessera.client import cohort
from tessera.client.histories import histories
from tessera.client.private_state import PrivateState
from tessera.common.config.settings import LocalSettings, Settings
from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.interactions import Split, load_interactions
from tessera.common.errors import DataError
from tessera.common.protocol.updates import Update
from tessera.common.registry.component import ComponentSettings
from tessera.common.registry.losses import BCESettings
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.strategies.fedvlr import FedVLR

LOCAL = LocalSettings(
    backbone=ComponentSettings(name="fedavg"),
    loss=BCESettings(name="bce", negatives=4),
    local_epochs=5,
    history_mask=0.0,
    learning_rate=0.01,
)


def main() -> None:
    """Time both, check that they agree, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as cache:
        name, split, sent = first_broadcast(arguments.data, Path(cache))
    people = histories(split)
    state = cohort.start_state(split.users, LOCAL, sent["views"], seed=0)

    fast: list[float] = []
    update = Update()
    for _ in range(arguments.rounds + 2):
        started = time.perf_counter()
        _, update = cohort.train(state, sent, people, LOCAL, 0, 1)
        fast.append(time.perf_counter() - started)
    started = time.perf_counter()
    gradient, loss = naive_round(state, split, sent)
    slow = time.perf_counter() - started

    seconds = statistics.median(fast[2:])
    difference = float((gradient - update.gradients["views"]).abs().max() / gradient.abs().max())
    figures = {
        "data": name, "users": len(split.users), "items": split.n_items, "views": len(sent["views"]),
        "threads": arguments.threads,
        "cohort_s_per_round": round_(seconds), "naive_s_per_round": round_(slow), "ratio": round_(slow / seconds),
        "relative_difference": difference, "loss": round_(loss),
    }  # fmt: skip
    print(f"cohort {seconds:.4f} s a round, naive twin {slow:.2f} s a round: {slow / seconds:.0f} times")
    print(json.dumps(figures))


def first_broadcast(data: Path | None, cache: Path) -> tuple[str, Split, dict[str, torch.Tensor]]:
    """KU's users and a first broadcast of seven views; or a generated set of the same size."""
    description = {"folder": "ku", "kind": "fedvlr", "split": "given"}
    settings = Settings.model_validate({"name": "speed", "data": description, "local": LOCAL.model_dump()})
    try:
        folder, name = prepared_dataset(settings.data, data, cache), "ku"
    except DataError:
        from tessera.common.datasets import convert_shop

        folder, name = cache / "shop", "generated: 204 users, 560 items"
        convert_shop(folder, n_items=560, n_users=204)
    catalogue = load_catalogue(folder)
    split = load_interactions(folder, len(catalogue)).split(given=name == "ku")
    sent = FedVLR(settings, catalogue).build_views()
    return name, split, {name: value.float() for name, value in sent.items()}


def naive_round(state: PrivateState, split: Split, sent: dict[str, torch.Tensor]) -> tuple[torch.Tensor, float]:
    """One round of the naive twin: the summed gradient of the views and the mean loss."""
    total, losses = torch.zeros_like(sent["views"]), []
    received = Received(sent)
    for row, user in enumerate(split.users):
        client = NaiveClient(len(sent["views"]), sent["views"].shape[-1], "fedavg", torch.float32)
        for own, name in (
            (client.theta, "head"),
            (client.offset, "bias"),
            (client.scale, "router.scale"),
            (client.bias, "router.bias"),
        ):
            own.data.copy_(state.parameters[name][row])
        items = split.train_items[split.offsets[row] : split.offsets[row + 1]].tolist()
        loss, gradients = personalized_refinement(client, received, user, items, split.n_items, LOCAL, 0, 1)
        total += gradients["sent.views"]
        losses.append(loss)
    return total, float(np.mean(losses))


def round_(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
