"""python -m tessera.benchmarks.modality_gap --data DATA [--rounds 40] [--runs FOLDER] [--plot]

Measures how far item ids lie from pictures and texts in the space that the views share, for everybody and for each person
(Figure 10 of the FedVLR paper: FedRAP on KU, whose devices keep an item table of their own beside the common one).

The gap of two sets of items is the distance between their means, every item taken to length 1 (Liang et al. 2022): 0 where
they lie around the same direction, 2 at most. The common gap is of the id view; a person's is of the id view and their own
item table together. Prints both, the persons' as quartiles, beside that of a random table of the same size; ends with one line
of JSON. With --plot also draws the common items and those of two people in their first two principal components, as
benchmarks/plots/ku-modality-gap.png (needs the extra `plots`): KU's people are public, nobody else's tables may be drawn so.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.client.recommend import Personal
from tessera.common.config.loading import parse_settings
from tessera.common.protocol.messages import VIEWS
from tessera.common.utils.counter_rng import key, normal
from tessera.deploy.executors.run import make_job, run_job
from tessera.deploy.provisioning.datasets import prepared_dataset

CONTENTS = ("image", "text")
IDS = "id"
QUARTILES = ("first quartile", "median", "third quartile")
PLOT = Path(__file__).parent / "plots" / "ku-modality-gap.png"
SETTINGS = {
    "name": "modality-gap",
    "data": {"folder": "ku", "kind": "fedvlr", "split": "given"},
    "local": {"backbone": "fedrap", "optimizer": "sgd", "learning_rate": 1.0, "local_epochs": 2, "loss": "bce",
              "history_mask": 0.0, "weighting": "examples"},
    "server": {"learning_rate": 0.01},
    "evaluation": {"every": 10, "baselines": False},
}  # fmt: skip


def main() -> None:
    """Train, measure, print, and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--plot", action="store_true")
    arguments = parser.parse_args()
    settings = parse_settings(SETTINGS | {"rounds": arguments.rounds}, "modality_gap")
    dataset = prepared_dataset(settings.data, arguments.data, arguments.runs / "prepared")
    job = make_job(settings, dataset, arguments.runs / "modality-gap", resume=False, overwrite=True)
    run_job(job, "inline", lambda line: None)
    views, tables = learnt(job.devices[0])
    found = summary(views, tables)
    print(f"{'gap of ids to':14}{'common':>9}{'a person, quartiles':>29}{'random table':>14}")
    for content, row in found.items():
        quartiles = " ".join(f"{row[name]:.3f}" for name in QUARTILES)
        print(f"{content:14}{row['common']:9.3f}{quartiles:>29}{row['random']:14.3f}")
    print(json.dumps({"benchmark": "modality_gap", "rounds": arguments.rounds, "people": len(tables), "gap": found}))
    if arguments.plot:
        plot(views, tables)


def learnt(device: Path) -> tuple[dict[str, Tensor], Tensor]:
    """The views of a device by name, [n_items, dim] each, and its people's own item tables, [n_people, n_items, dim]."""
    personal = Personal.open(device)
    views = dict(zip(personal.task.views, personal.sent[VIEWS], strict=True))
    tables = torch.cat([private["items"] for _, private in personal.people()])
    return {name: views[name] for name in (*CONTENTS, IDS)}, tables


def gap(one: Tensor, other: Tensor) -> Tensor:
    """Distance between the means of two sets of items, each of length 1, [...], from [..., n_items, dim]."""
    return (normalize(one, dim=-1).mean(-2) - normalize(other, dim=-1).mean(-2)).norm(dim=-1)


def summary(views: dict[str, Tensor], tables: Tensor) -> dict[str, dict[str, float]]:
    """By modality: the gap of the common ids, the quartiles of people's, and the median with random tables of equal norm.

    Adding anything to the ids changes the gap; what a person's table does that a random one does not is what was learnt.
    """
    noise = normal(key("modality-gap"), torch.arange(tables.numel())).reshape(tables.shape)
    random = normalize(noise, dim=-1) * tables.norm(dim=-1, keepdim=True)
    found = {}
    for content in CONTENTS:
        people = np.quantile(gap(views[IDS] + tables, views[content]).numpy(), [0.25, 0.5, 0.75])
        row = {
            "common": float(gap(views[IDS], views[content])),
            "random": float(gap(views[IDS] + random, views[content]).median()),
            **dict(zip(QUARTILES, people.tolist(), strict=True)),
        }
        found[content] = {name: round(value, 4) for name, value in row.items()}
    return found


def plot(views: dict[str, Tensor], tables: Tensor) -> None:
    """Draw the items of each modality in the first two principal components of all that is common: common ids, two people's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    common = normalize(torch.cat(list(views.values())), dim=-1)
    centre = common.mean(0)
    axes_of = torch.linalg.svd(common - centre, full_matrices=False).Vh[:2]
    panels = {"common": views[IDS], "first person": views[IDS] + tables[0], "second person": views[IDS] + tables[1]}
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3.4), sharex=True, sharey=True, layout="constrained")
    for axis, (title, ids) in zip(axes, panels.items(), strict=True):
        for name, items in ((IDS, ids), *((content, views[content]) for content in CONTENTS)):
            flat = ((normalize(items, dim=-1) - centre) @ axes_of.T).numpy()
            axis.scatter(flat[:, 0], flat[:, 1], s=5, alpha=0.4, linewidths=0, label=name)
        between = ", ".join(f"{content} {float(gap(ids, views[content])):.2f}" for content in CONTENTS)
        axis.set(title=f"{title}\ngap of ids to {between}", xlabel="first component")
    axes[0].set_ylabel("second component")
    axes[0].legend(frameon=False, markerscale=3)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=80)


if __name__ == "__main__":
    main()
