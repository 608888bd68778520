"""python -m tessera.benchmarks.aspects_rounds [--kinds 4] [--people 600] [--mixed] [--seeds 0 1 2] [--secure] [--rows NAME ...]

Trains on aspects shops, in the product's rounds, with all that may tell people apart: nothing, groups with maps of their own
(by what people like, drawn, by cohesion, by the truth), and gates by people's own cohesion. Settings are those of
benchmarks/perpeft/aspects.yaml; the rate of maps and the sharpness of the softmax are chosen on validation, by row and shop.

The oracle's groups are written into devices' folders as groups.csv. Purity is of the block in which a person's items are most
alike, or of the groups that are in the devices' private states. Prints a table, and one line of JSON.
"""

import argparse
import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.client.aspects.facets import BlockSums
from tessera.client.aspects.groups import GIVEN, GROUP
from tessera.client.histories import histories
from tessera.client.recommend import Personal
from tessera.common.config.loading import load_settings
from tessera.common.data.interactions import load_interactions
from tessera.common.datasets import convert_aspects_shop
from tessera.common.datasets.aspects_shop import FACTORS, KINDS, N_ITEMS, N_PEOPLE
from tessera.common.datasets.demo_shop import USERS
from tessera.common.protocol.messages import BLOCKS, HISTORY
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.job import Job

SETTINGS = Path(__file__).parent / "perpeft" / "aspects.yaml"
RATES = ("1", "10", "30")
TRAINED = ("rounds=30", "evaluation.every=5")
Options = tuple[str, ...]

GATES: dict[str, list[Options]] = {
    "global": [("views.facets=1",)],
    "gate, softmax": [("local.gate=softmax", f"local.gate_sharpness={sharp}") for sharp in ("0.1", "0.5")],
    "gate, James-Stein": [("local.gate=james-stein",)],
}
GROUPS = {"k-means on states": "states", "random": "random", "largest cohesion": "cohesion", "oracle": "given"}


def trials(row: str, kinds: int, rates: Sequence[str]) -> list[Options]:
    """The changes to the settings that a row is chosen from."""
    if row in GATES:
        return [("rounds=5", *options) for options in GATES[row]]
    own = ("local.gate=none", f"local.groups.count={kinds}", f"local.groups.by={GROUPS[row]}", *TRAINED)
    return [(*own, f"server.head_learning_rate={rate}") for rate in rates]


def measure(
    shop: Path, row: str, common: Options, runs: Path, seed: int, rates: Sequence[str] = RATES
) -> dict[str, float]:
    """The figures of the trial that is best on validation, in %, and the purity of what tells people apart."""
    best: dict[str, float] = {}
    kinds = pl.read_parquet(shop / USERS)
    for options in trials(row, len(kinds.columns) - 2, rates):
        settings = load_settings(SETTINGS, "inline", [*common, f"seed={seed}", *options])
        job = make_job(settings, shop, runs / "aspects", resume=False, overwrite=True)
        _write_groups(job, kinds)
        result = run_job(job, "inline", lambda line: None)
        scores = {str(name): value for name, value in result.scores.items()}
        found = {
            "validation": scores["validation/all/ndcg@50"],
            "hr@50": scores["test/all/hr@50"],
            "ndcg@50": scores["test/all/ndcg@50"],
            "round": float(result.selected_round or 0),
        }
        if not best or found["validation"] > best["validation"]:
            best = found | purity(job, kinds)
        shutil.rmtree(runs / "aspects")
    return best


def _write_groups(job: Job, kinds: pl.DataFrame) -> None:
    """Write each device's people's true kinds into its folder."""
    known = dict(zip(kinds["user"], kinds["kind"], strict=True))
    for folder in job.devices:
        with (folder / GIVEN).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["user", "group"])
            table.writerows((user, known[user]) for user in load_interactions(folder, N_ITEMS).users)


def purity(job: Job, kinds: pl.DataFrame) -> dict[str, float]:
    """Share of people who are of the most frequent kind in their group; nothing where nothing tells them apart."""
    found = dict(_groups(job))
    if not found:
        return {}
    groups = np.array([found[user] for user in kinds["user"]])
    true: NDArray[np.int64] = kinds["kind"].to_numpy()
    most = sum(np.bincount(true[groups == one]).max() for one in np.unique(groups))
    return {"purity": float(most / len(groups))}


def _groups(job: Job) -> Iterator[tuple[str, int]]:
    for folder in job.devices:
        personal = Personal.open(folder)
        for split, private in personal.people():
            if GROUP in private:
                yield from zip(split.users, private[GROUP][:, 0].int().tolist(), strict=True)
            elif BLOCKS in personal.sent:
                own = BlockSums(histories(split), personal.sent[HISTORY], personal.sent[BLOCKS]).cohesion()
                yield from zip(split.users, own.argmax(1).tolist(), strict=True)


def main() -> None:
    """Draw shops, train each row, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", type=int, default=KINDS)
    parser.add_argument("--factors", type=int, default=FACTORS)
    parser.add_argument("--people", type=int, default=N_PEOPLE)
    parser.add_argument("--mixed", action="store_true")
    parser.add_argument("--secure", action="store_true", help="under secure sums")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", default=[*GATES, *GROUPS])
    parser.add_argument("--rates", nargs="+", default=[*RATES], help="of groups' maps")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    common: Options = (f"federation.nodes={given.nodes}", "evaluation.baselines=false", "server.optimizer=sgd")
    common += (f"views.dim={given.kinds * given.factors}", f"privacy.secure={str(given.secure).lower()}")
    found: dict[str, dict[int, dict[str, float]]] = {row: {} for row in given.rows}
    for seed in given.seeds:
        shop = given.runs / "aspects-shop"
        convert_aspects_shop(shop, given.kinds, given.factors, given.people, given.mixed, seed, overwrite=True)
        for row in given.rows:
            options = (*common, *_facets(row, given.kinds))
            found[row][seed] = measure(shop, row, options, given.runs, seed, given.rates)
            print(f"{row:20} seed {seed}  {_written(found[row][seed])}", flush=True)
    print(json.dumps({"settings": {**vars(given), "runs": str(given.runs)}, "found": found}))


def _facets(row: str, kinds: int) -> Sequence[str]:
    return () if row == "global" else (f"views.facets={kinds}",)


def _written(figures: dict[str, float]) -> str:
    own = f"{figures['hr@50']:5.2f} / {figures['ndcg@50']:5.2f}  validation {figures['validation']:5.2f}"
    alike = f"purity {figures['purity']:4.2f}" if "purity" in figures else ""
    return f"{alike:11}  {own}  round {figures['round']:.0f}"


if __name__ == "__main__":
    main()
