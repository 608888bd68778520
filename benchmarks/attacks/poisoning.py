"""python -m tessera.benchmarks.attacks.poisoning [CONFIG] [--data FOLDER] [--attacks ...] [--defences ...] [--seeds 0 1 2]

Measures what one hostile node of twenty gets, by attack and by defence, beside the same federation with nobody hostile.

The node wants three items in people's lists that hardly anybody has. ER@K (exposure ratio) is the share, in %, of people on
other nodes whose first K of the whole catalogue without their history hold one of them. All rounds are trained, and the last
one is measured. NDCG@50 is of the test items. The attack `absent` is none: the node's gradients are left out, which is what the
best of all defences would come to. Ends with one line of JSON: means over seeds, and whether the gates hold.
"""

import argparse
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.benchmarks.attacks.hostile import ATTACKS, Attack, AttackName, federation_app
from tessera.client import cohort
from tessera.client.histories import histories
from tessera.client.recommend import Personal
from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Settings
from tessera.common.metrics.names import ALL, NDCG, TEST, MetricName
from tessera.common.metrics.records import read_result, read_rounds
from tessera.common.utils import counter_rng
from tessera.common.utils.logs import only_from
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.executors.run import make_job
from tessera.deploy.provisioning.datasets import prepared_dataset
from tessera.server.app import serve

CONFIG = Path(__file__).parent.parent / "ml-latest-small" / "fedvlr-history.yaml"
N_TARGETS, N_POPULAR = 3, 100
HOSTILE = frozenset({0})
KS = (5, 50)
SCORE = MetricName(TEST, ALL, NDCG, 50)
FIRST, BEYOND, LOST = 1.0, 2.0, 2.0
"""The gates: points of ER@5 and of ER@50 beyond those of nobody hostile, and NDCG@50 lost, in % of that."""

Figures = dict[str, Any]


def run_poisoning(
    settings: Settings, dataset: Path, attack: AttackName, defence: str | Mapping[str, Any], seed: int
) -> Figures:
    """Train once with node 0 as the attacker; return exposure and NDCG of the last round, in %, and how many of its answers
    were dropped. A defence is named as in the settings, by its name or with what it assumes."""
    content = settings.model_dump()
    content |= {"seed": seed, "federation": content["federation"] | {"defence": defence}}
    content["evaluation"] = content["evaluation"] | {"every": settings.rounds, "baselines": False}
    settings = Settings.model_validate(content)
    folder = Path(tempfile.mkdtemp())
    try:
        job = make_job(settings, dataset, folder / "run", resume=False, overwrite=False)
        found = plan(attack, job.devices, settings)
        app = federation_app(job.devices[0].parent, found, HOSTILE if attack != "none" else frozenset())
        serve(InlineGrid(app, len(job.devices)), settings, job.catalogue, job.run_dir, resume=False)
        others = [device for node, device in enumerate(job.devices) if node not in HOSTILE]
        result, rounds = read_result(job.run_dir), read_rounds(job.run_dir)
        dropped = sum(sum((line.dropped or {}).values()) for line in rounds)
        return {
            "attack": attack,
            "defence": defence if isinstance(defence, str) else ":".join(map(str, defence.values())),
            "seed": seed,
            **{f"er@{k}": value for k, value in exposure(others, found.targets).items()},
            "ndcg@50": result.scores[SCORE],
            "dropped": dropped,
        }
    finally:
        shutil.rmtree(folder)


def plan(name: AttackName, devices: Sequence[Path], settings: Settings) -> Attack:
    """An attack for items that few have: drawn by seed from those with the fewest events, but some, on all devices together."""
    device_settings = DeviceSettings.of(settings)
    several = [RecommendationClient(device).split(device_settings).counts() for device in devices]
    counts = torch.from_numpy(np.sum(several, axis=0))
    draws = counter_rng.uniform(counter_rng.key("poisoning", settings.seed), torch.arange(len(counts)))
    targets = torch.where(counts > 0, counts + draws, torch.inf).argsort()[:N_TARGETS]
    return Attack(name, targets, counts.argsort(descending=True)[:N_POPULAR], len(counts))


def exposure(devices: Iterable[Path], targets: Tensor) -> dict[int, float]:
    """The share of people of these devices, in %, of whose first K items one is a target, by K."""
    hits, people = dict.fromkeys(KS, 0.0), 0
    for device in devices:
        personal = Personal.open(device)
        for block, private in personal.people():
            known = histories(block)
            scores, _ = cohort.scores(private, personal.sent, known, personal.task.settings.local)
            first = scores.masked_fill(known.mask(), -torch.inf).topk(max(KS), dim=1).indices
            people += len(known)
            for k in KS:
                hits[k] += float(torch.isin(first[:, :k], targets).any(1).sum())
    return {k: 100 * value / people for k, value in hits.items()}


def gates(rows: Sequence[Figures]) -> list[Figures]:
    """The mean over seeds for each attack and defence, beside that of nobody hostile without a defence, and what holds.

    The gates are FIRST, BEYOND and LOST. `beyond` is the NDCG lost beside the federation without the hostile node's gradients,
    where that is among the rows: no defence can do more than leave them out, since what its people would have taught is in none
    of its answers.
    """
    means = []
    for attack, defence in dict.fromkeys((row["attack"], row["defence"]) for row in rows):
        own = [row for row in rows if (row["attack"], row["defence"]) == (attack, defence)]
        figures = {name: fmean(row[name] for row in own) for name in ("er@5", "er@50", "ndcg@50", "dropped")}
        means.append({"attack": attack, "defence": defence, "seeds": len(own), **figures})
    for plain in [row for row in means if row["attack"] == row["defence"] == "none"]:
        for row in means:
            row["lost"] = 100 * (1 - row["ndcg@50"] / plain["ndcg@50"])
            exposed = row["er@5"] <= plain["er@5"] + FIRST and row["er@50"] <= plain["er@50"] + BEYOND
            row["holds"] = exposed and row["lost"] <= LOST
    for without in [row for row in means if (row["attack"], row["defence"]) == ("absent", "none")]:
        for row in means:
            row["beyond"] = 100 * (1 - row["ndcg@50"] / without["ndcg@50"])
    return means


def _defence(text: str) -> str | dict[str, Any]:
    """`NAME`, or `NAME:ATTACKERS`, as the settings have it."""
    name, _, attackers = text.partition(":")
    return {"name": name, "attackers": int(attackers)} if attackers else name


def main() -> None:
    """Run all, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=CONFIG)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument(
        "--defences",
        nargs="+",
        type=_defence,
        default=["none", "row-cap", "trim"],
        help="row-cap:3 is row-cap that assumes 3 attackers",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nodes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    changes = [f"federation.nodes={arguments.nodes}", f"rounds={arguments.rounds}", *arguments.set]
    settings = load_settings(arguments.config, "inline", changes)
    dataset, rows = prepared_dataset(settings.data, arguments.data), []
    for seed, attack, defence in product(arguments.seeds, arguments.attacks, arguments.defences):
        with only_from(logging.ERROR):
            rows.append(run_poisoning(settings, dataset, attack, defence, seed))
        print(json.dumps(rows[-1]), flush=True)
    means = gates(rows)
    print(
        f"{'attack':>16} {'defence':>10} {'ER@5':>7} {'ER@50':>7} {'NDCG@50':>8} {'lost':>7} {'beyond':>7} {'holds':>6}"
    )
    for row in means:
        figures = f"{row['er@5']:>7.2f} {row['er@50']:>7.2f} {row['ndcg@50']:>8.3f}"
        lost = f"{row.get('lost', 0):>6.1f}% {row.get('beyond', 0):>6.1f}%"
        print(f"{row['attack']:>16} {row['defence']:>10} {figures} {lost} {row.get('holds')!s:>6}")
    print(json.dumps({"config": settings.name, "rounds": arguments.rounds, "nodes": arguments.nodes, "means": means}))


if __name__ == "__main__":
    main()
