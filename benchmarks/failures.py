"""python -m tessera.benchmarks.failures [--data FOLDER] [--seeds 0 1 2] [--share 0.3] [--nodes 16] [--rounds 100]

Measures how much accuracy a federation loses when clients fail: one run in which no node fails, and one in which many do.

In the second each node fails in each round of training with the chance `--share`, drawn by seed. Half of those that fail are
gone before they train; the others train, keep what they learnt, and their update is lost. All users are evaluated in both. Ends
with one line of JSON: how many rounds were completed, and NDCG@50 and HR@50 on test of the round best on validation, beside
popularity.
"""

import argparse
import json
import logging
import shutil
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from flwr.app import Error, Message

from tessera.client.app import device_app
from tessera.common.config.loading import load_settings
from tessera.common.metrics.names import ALL, HR, NDCG, TEST, MetricName
from tessera.common.metrics.records import read_result, read_rounds
from tessera.common.protocol.messages import unpack_task
from tessera.common.utils import counter_rng
from tessera.common.utils.logs import only_from
from tessera.deploy.executors.inline import CLIENT_APP_FAILED, InlineGrid
from tessera.deploy.executors.run import make_job
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.app import serve

CONFIG = Path(__file__).parent / "ml-latest-small" / "fedvlr-history.yaml"


class Failing(InlineGrid):
    """Nodes of which a `share` fails in each round of training, by `seed`."""

    def __init__(self, devices: Path, n_nodes: int, share: float, seed: int) -> None:
        super().__init__(device_app(devices), n_nodes)
        self.share, self.salt = share, counter_rng.key("failures", seed)

    def _handle(self, message: Message) -> Message:
        task, node = unpack_task(message.content)[0], message.metadata.dst_node_id
        draw = (counter_rng.key(self.salt, task.round, node) % 2**32) / 2**32
        if task.kind != "train" or draw >= self.share:
            return super()._handle(message)
        if draw >= self.share / 2:
            super()._handle(message)
        return Message(Error(CLIENT_APP_FAILED, "drawn to fail"), reply_to=message)


def main() -> None:
    """Run both for each seed, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    with only_from(logging.ERROR):  # each failure would be a line
        runs = {share: [run(arguments, seed, share) for seed in arguments.seeds] for share in (0.0, arguments.share)}
    whole, failing = (mean(one["ndcg"] for one in several) for several in runs.values())
    print(f"{'share failing':>14} {'seed':>5} {'rounds':>7} {'lost':>6} {'HR@50':>7} {'NDCG@50':>8}")
    for share, several in runs.items():
        for one in several:
            line = f"{one['seed']:>5} {one['rounds']:>7} {one['lost']:>6} {one['hr']:>7.2f} {one['ndcg']:>8.3f}"
            print(f"{share:>14} {line}")
    figures = {
        "config": CONFIG.name, "nodes": arguments.nodes, "rounds": arguments.rounds, "share": arguments.share,
        "completed": [one["rounds"] for one in runs[arguments.share]],
        "undisturbed": runs[0.0], "failing": runs[arguments.share],
        "relative_ndcg": round(failing / whole - 1, 4),
    }  # fmt: skip
    print(json.dumps(figures))


def run(arguments: argparse.Namespace, seed: int, share: float) -> dict[str, Any]:
    """One run's figures: rounds completed, updates lost, and scores on test."""
    changes = [f"seed={seed}", f"rounds={arguments.rounds}", f"federation.nodes={arguments.nodes}"]
    settings = load_settings(CONFIG, "inline", changes)
    folder = Path(tempfile.mkdtemp())
    try:
        dataset = prepared_dataset(settings.data, arguments.data)
        job = make_job(settings, dataset, folder / "run", resume=False, overwrite=False)
        grid = Failing(job.devices[0].parent, arguments.nodes, share, seed)
        serve(grid, settings, job.catalogue, job.run_dir, resume=False)
        rounds, result = read_rounds(job.run_dir), read_result(job.run_dir)
    finally:
        shutil.rmtree(folder)
    hr, ndcg = (MetricName(TEST, ALL, metric, 50) for metric in (HR, NDCG))
    return {
        "seed": seed,
        "rounds": len(rounds),
        "lost": sum((line.dropped or {}).get("failed", 0) for line in rounds),
        "selected_round": result.selected_round,
        "hr": round(result.scores[hr], 3),
        "ndcg": round(result.scores[ndcg], 3),
        "popularity_ndcg": round(result.baselines[ndcg.of("popularity")], 3),
    }


if __name__ == "__main__":
    main()
