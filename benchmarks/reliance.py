"""python -m tessera.benchmarks.reliance [--shops 0 1 2] [--runs FOLDER] [--plot]

Measures how well the demo's devices learn each user's true reliance on picture, text and crowd, over several generated shops.

First the Spearman correlation of true and learnt reliance, beside that of the routers' weights alone and that of runs without
routers. Then what the removal of a modality costs, by quartile of the true reliance on it: NDCG@50 of validation and test
items, trained with it less trained without it. Ends with one line of JSON; with --plot also writes
benchmarks/plots/reliance.png (needs the extra `plots`).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.benchmarks.harness.reliance import correlations, gains, reliances, spearman
from tessera.common.config.loading import load_settings
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.provisioning.datasets import prepared_dataset

DEMO = Path(__file__).parent / "demo.yaml"
PLOT = Path(__file__).parent / "plots" / "reliance.png"
NAMES = ("image", "text", "crowd")
SPOKEN = {"image": "picture", "text": "text", "crowd": "crowd"}
WITHOUT = {"image": "views.modalities=[text]", "text": "views.modalities=[image]", "crowd": "views.item_ids=false"}
KINDS = {"mean": "learnt", "routers' weights alone": "weight", "no router: views weighed alike": "alike"}
K = 50

Quartiles = NDArray[np.float64]
"""Mean and standard error of four groups of people, [4, 2]."""


def main() -> None:
    """Train on each shop with everything, without the router and without each modality; print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shops", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--plot", action="store_true")
    arguments = parser.parse_args()
    shops = {shop: people_of(shop, arguments.runs) for shop in arguments.shops}
    everybody = pl.concat(shops.values())
    found = {f"shop {shop}": correlations(people) for shop, people in shops.items()}
    found |= {row: average([correlations(people, kind) for people in shops.values()]) for row, kind in KINDS.items()}
    lost = {name: by_quartile(everybody, name) for name in WITHOUT}
    show(found, lost)
    rounded = {row: {name: round(value, 3) for name, value in values.items()} for row, values in found.items()}
    print(json.dumps({"spearman": rounded, "lost": {name: table.round(2).tolist() for name, table in lost.items()}}))
    if arguments.plot:
        plot(everybody, lost)


def people_of(shop: int, runs: Path) -> pl.DataFrame:
    """Everybody in a shop: user, reliance_*, learnt_*, weight_*, alike_* (learnt without routers), gain and lost_*."""

    def trained(name: str, *changes: str) -> tuple[Path, tuple[Path, ...]]:
        same = [f"seed={shop}", f"data.shop_seed={shop}", "evaluation.baselines=false"]
        settings = load_settings(DEMO, "inline", [*same, *changes])
        dataset = prepared_dataset(settings.data, None, runs / "prepared")
        job = make_job(settings, dataset, runs / f"reliance-{shop}-{name}", resume=False, overwrite=True)
        run_job(job, "inline", lambda line: None)
        return job.catalogue, job.devices

    dataset, devices = trained("all")
    table = reliances(dataset, devices).join(gains(devices, K), on="user")
    alike = reliances(*trained("alike", "local.route=uniform")).select("user", pl.col("^learnt_.*$"))
    table = table.join(alike.rename(lambda name: name.replace("learnt", "alike")), on="user")
    for name, change in WITHOUT.items():
        without = gains(trained(f"without-{name}", change)[1], K).rename({"gain": "without"})
        table = table.join(without, on="user").with_columns((pl.col("gain") - pl.col("without")).alias(f"lost_{name}"))
        table = table.drop("without")
    return table


def average(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of correlations, name by name."""
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def by_quartile(people: pl.DataFrame, name: str) -> Quartiles:
    """What people lose without a modality, by quartile of their true reliance on it, those who rely on it least first."""
    order = np.argsort(people[f"reliance_{name}"].to_numpy(), kind="stable")
    groups = np.array_split(people[f"lost_{name}"].to_numpy()[order], 4)
    return np.array([(group.mean(), group.std(ddof=1) / len(group) ** 0.5) for group in groups])


def show(found: dict[str, dict[str, float]], lost: dict[str, Quartiles]) -> None:
    """Print both tables."""
    print(f"{'Spearman, true and learnt reliance':36}" + "".join(f"{name:>9}" for name in (*NAMES, "mean")))
    for row, values in found.items():
        print(f"{row:36}" + "".join(f"{value:9.3f}" for value in values.values()))
    print(f"\n{f'NDCG@{K} lost, by reliance on it':28}" + "".join(f"{name:>15}" for name in ("least", "", "", "most")))
    for name, table in lost.items():
        print(f"{f'without {name}':28}" + "".join(f"{mean:8.2f} ±{error:5.2f}" for mean, error in table))


def plot(people: pl.DataFrame, lost: dict[str, Quartiles]) -> None:
    """Draw true against learnt reliance, and the losses."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(13, 3.6), layout="constrained")
    colours = dict(zip(NAMES, ("#c0504d", "#4f81bd", "#7f7f7f"), strict=True))
    for axis, name in zip(axes, NAMES, strict=False):
        true, learnt = people[f"reliance_{name}"], people[f"learnt_{name}"]
        axis.scatter(true, learnt, s=5, alpha=0.3, color=colours[name], linewidths=0)
        axis.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel="true reliance",
            title=f"{SPOKEN[name]}: Spearman {spearman(true, learnt):.2f}",
        )
        axis.set_aspect("equal")
    axes[0].set_ylabel("reliance learnt on the device")
    for number, (name, table) in enumerate(lost.items()):
        places = np.arange(4) + 0.28 * (number - 1)
        axes[3].bar(places, table[:, 0], 0.26, yerr=table[:, 1], color=colours[name], label=f"without {SPOKEN[name]}")
    axes[3].axhline(0, color="black", linewidth=0.8)
    axes[3].set_xticks(range(4), ["least", "2nd", "3rd", "most"])
    axes[3].set(xlabel="quartile of true reliance on it", ylabel=f"NDCG@{K} lost, in %", title="a modality removed")
    axes[3].legend(frameon=False)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=80)


if __name__ == "__main__":
    main()
