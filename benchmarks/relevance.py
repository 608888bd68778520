"""python -m tessera.benchmarks.relevance RUNS/mosaic-static OUT

Measures whether FedMosaic's relevance finds which devices have tasks of the same family.

RUNS/mosaic-static is where `tessera bench benchmarks/mosaic/static.yaml` left its runs; OUT receives relevance-NAME.png, the
cosines of the devices' signatures at the end of the first seed's run. The last line is JSON: mean cosine within a family of
tasks and across, and the weight that a device gives its own family, by seed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tessera.benchmarks.plots import STYLE, save
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_json

METHOD = "fedmosaic"


def main(bench: Path, out: Path) -> dict[str, Any]:
    """Print and draw what a bench's runs say. Raises `DataError` when there is none."""
    found = {f"seed {result['seed']}": result["strategy"]["relevance"] for result in finished(bench)}
    if not found:
        raise DataError(f"{bench} holds no finished run of {METHOD}: tessera bench benchmarks/mosaic/static.yaml")
    figures = {seed: separation(one) for seed, one in found.items()}
    for seed, one in figures.items():
        print(seed, ", ".join(f"{name} {value:.2f}" for name, value in one.items()))
    matplotlib.use("agg")
    plt.rcParams.update(STYLE)
    save(picture(next(iter(found.values()))), out / f"relevance-{bench.name}.png")
    return {"bench": bench.name, "relevance": figures}


def finished(bench: Path) -> list[dict[str, Any]]:
    """The results of the method with what was chosen for it, by seed; of settings that were only tried, none."""
    found = []
    for tried in (*bench.glob(f"{METHOD}/tried.json"), *sorted(bench.glob(f"*/{METHOD}/tried.json"))):
        chosen = read_json(tried)["chosen"]
        label = "".join(f"-{key.split('.')[-1]}={value}" for key, value in chosen.items())
        results = [
            read_json(path) for path in tried.parent.glob("seed*/result.json") if path.parent.name.endswith(label)
        ]
        found += sorted(results, key=lambda result: result["seed"])
    return found


def separation(relevance: dict[str, Any]) -> dict[str, float]:
    """Mean cosine and mean weight within a family, a device with itself aside, and across families."""
    families = np.asarray(relevance["families"])
    same = families[:, None] == families[None, :]
    others = ~np.eye(len(families), dtype=bool)
    cosines, weights = np.asarray(relevance["similarity"]), np.asarray(relevance["weights"])
    return {
        "cosine within": float(cosines[same & others].mean()),
        "cosine across": float(cosines[~same].mean()),
        "weight of the own family": float((weights * (same & others)).sum(1).mean()),
        "the same if all weighed alike": float(((same & others).sum(1) / (len(families) - 1)).mean()),
    }


def picture(relevance: dict[str, Any]) -> Figure:
    """The cosines of signatures, devices sorted by family."""
    families = np.asarray(relevance["families"])
    order = np.argsort(families, kind="stable")
    cosines = np.asarray(relevance["similarity"])[np.ix_(order, order)]
    figure, axes = plt.subplots(figsize=(5.2, 4.4))
    shown = axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
    names = [f"{family} {number}" for number, family in enumerate(families[order], start=1)]
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    for row, column in np.ndindex(cosines.shape):
        dark = abs(cosines[row, column]) > 0.6
        axes.text(
            column, row, f"{cosines[row, column]:.1f}", ha="center", va="center", fontsize=7, color="w" if dark else "k"
        )
    axes.set_title("Cosine of what devices sign (RELA)")
    figure.colorbar(shown, ax=axes, shrink=0.8)
    return figure


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
