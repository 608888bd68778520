"""python -m tessera.benchmarks.plots RUNS OUT

Draws the figures of the ablations, from runs that are there.

RUNS is where `tessera bench` left the grids of benchmarks/*/ablations, and `tessera train` whole runs with their devices; OUT
receives a PNG for each that is there. The methods of a grid are called BACKBONE-VARIANT. Figures are those of the test split,
of the round that validation chose, for targets that occur in training (KU's other targets are an artefact: see its grids);
spreads are from the lowest to the highest seed.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tessera.client.recommend import Personal
from tessera.common.errors import DataError
from tessera.common.metrics.names import NDCG, TEST, WARM, MetricName
from tessera.common.metrics.records import StatisticsRecord, read_records, read_rounds
from tessera.common.privacy.accounting import gaussian_epsilon
from tessera.common.utils.atomic_files import read_json
from tessera.common.utils.tables import read_table

METRIC, LABEL = str(MetricName(TEST, WARM, NDCG, 50)), "NDCG@50, warm targets, %"
COLOURS = ("#3b6ea5", "#d1783c", "#5d9b62", "#b0508b", "#7a6a58", "#4fa3a8", "#8c8c8c")
STYLE: dict[Any, object] = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e4e4e4",
    "axes.prop_cycle": cycler(color=COLOURS), "axes.titlesize": 10, "font.size": 9, "legend.frameon": False,
    "figure.constrained_layout.use": True,
}  # fmt: skip


def main(runs: Path, out: Path) -> None:
    """Draw everything that has results below `runs`. Raises `DataError` when nothing has."""
    matplotlib.use("agg")
    plt.rcParams.update(STYLE)
    drawn = 0
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        for suffix, draw in PLOTS.items():
            if folder.name.endswith(suffix) and (folder / "results.parquet").exists():
                save(draw(folder), out / f"{folder.name}.png")
                drawn += 1
        if (folder / "devices").is_dir():
            save(router(folder), out / f"{folder.name}-router.png")
            drawn += 1
    if not drawn:
        raise DataError(f"{runs} holds neither grids nor runs that there is a picture of")


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, and forget it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def spreads(folder: Path) -> pl.DataFrame:
    """Mean, lowest and highest test figure over seeds of every method of a grid, in the grid's order."""
    table = read_table(folder / "results.parquet", ("method", "seed", METRIC)).filter(pl.col("seed").is_not_null())
    value = pl.col(METRIC)
    found = table.group_by("method", maintain_order=True).agg(
        mean=value.mean(), low=value.min(), high=value.max(), seeds=value.count()
    )
    parts = pl.col("method").str.splitn("-", 2)
    return found.with_columns(backbone=parts.struct.field("field_0"), variant=parts.struct.field("field_1"))


def convergence(folder: Path) -> Figure:
    """Training loss by round, as a share of the first round's: the losses differ in kind (Figure 6)."""
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for method in spreads(folder)["method"]:
        lines = read_rounds(folder / method / "seed0")
        losses = np.array([line.loss for line in lines])
        axes.plot([line.round for line in lines], losses / losses[0], label=method)
    axes.set(xlabel="round", ylabel="training loss, first round = 1", ylim=(0, None), title=folder.name)
    axes.legend(ncols=2)
    return figure


def fraction(folder: Path) -> Figure:
    """How good the views get by the share of people in a round (Figure 9)."""
    figure, axes = plt.subplots(figsize=(5, 3.4))
    for (backbone,), rows in spreads(folder).group_by("backbone", maintain_order=True):
        _line(axes, [100 * float(name) for name in rows["variant"]], rows, str(backbone))
    axes.set(xlabel="people in a round, %", ylabel=LABEL, ylim=(0, None), title=folder.name)
    axes.legend()
    return figure


def rates(folder: Path) -> Figure:
    """Validation NDCG@50 by the server's learning rate and weight decay, a panel a backbone (Figure 7)."""
    panels = {str(method): tried(folder / str(method)) for method in spreads(folder)["method"]}
    return heatmaps(folder.name, panels, "server.learning_rate", "server.weight_decay")


def fedrap_weights(folder: Path) -> Figure:
    """Validation NDCG@50 by FedRAP's two weights, a panel a learning rate of the server (Figure 8)."""
    cells = tried(folder / "fedrap")
    panels = {
        f"learning rate {rate:g}": rows
        for (rate,), rows in cells.group_by("server.learning_rate", maintain_order=True)
        if isinstance(rate, float)
    }
    return heatmaps(folder.name, panels, "local.backbone.difference_weight", "local.backbone.l1_weight")


def tried(method: Path) -> pl.DataFrame:
    """What a method of a grid chose among: its settings by dotted names, and `validation`, where a run did not fail."""
    return pl.DataFrame(read_json(method / "tried.json")["tried"]).filter(pl.col("validation").is_not_null())


def heatmaps(title: str, panels: dict[str, pl.DataFrame], down: str, across: str) -> Figure:
    """Validation NDCG@50 by two settings, a panel each."""
    figure, axes_of = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3), squeeze=False)
    for axes, (name, rows) in zip(axes_of[0], panels.items(), strict=True):
        cells = rows.pivot(across, index=down, values="validation")
        values = cells.drop(down).to_numpy()
        lightest = 2 * np.nanmax(values) - np.nanmin(values)  # light enough for black figures
        axes.imshow(values, cmap="Blues", aspect="auto", vmax=lightest)
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", size=8)
        axes.set(title=name, xlabel=_spoken(across), xticks=range(values.shape[1]), xticklabels=cells.columns[1:])
        axes.set(yticks=range(len(cells)), yticklabels=[f"{value:g}" for value in cells[down]])
        axes.grid(visible=False)
    axes_of[0, 0].set_ylabel(_spoken(down))
    figure.suptitle(f"{title}: validation NDCG@50, %", size=10)
    return figure


def _spoken(setting: str) -> str:
    return setting.rpartition(".")[2].replace("_", " ")


def noise(folder: Path) -> Figure:
    """What each person's noise costs, and what it buys: epsilon for who sees only the sums (Table 4)."""
    rows = spreads(folder)
    figure, axes = plt.subplots(figsize=(5.4, 3.4))
    _line(axes, list(range(len(rows))), rows, "")
    axes.set(
        ylabel=LABEL,
        ylim=(0, None),
        title=folder.name,
        xlabel="each person's noise as a multiple of the clip; \N{GREEK SMALL LETTER EPSILON} of the sums",
    )
    axes.set_xticks(range(len(rows)), [_protection(folder / method / "seed0") for method in rows["method"]])
    return figure


def _protection(run: Path) -> str:
    """What a run did to uploads, and the epsilon of its sums at delta 1e-5."""
    settings = read_json(run / "result.json")["settings"]
    multiplier = settings["privacy"]["noise_multiplier"]
    if not multiplier:
        return "clip only" if settings["privacy"]["clip"] else "none"
    people = next(line.users for line in read_records(run) if isinstance(line, StatisticsRecord))
    epsilon = gaussian_epsilon((settings["rounds"] / people) ** 0.5 / multiplier, 1e-5)
    return f"{multiplier:g}\n\N{GREEK SMALL LETTER EPSILON} {epsilon:,.0f}"


def bars(folder: Path) -> Figure:
    """Each variant's mean, with its spread over seeds, a panel a backbone (Tables 5 to 7)."""
    groups = list(spreads(folder).group_by("backbone", maintain_order=True))
    figure, panels = plt.subplots(
        1, len(groups), figsize=(2.4 * len(groups), 2.8), sharex=True, sharey=True, squeeze=False
    )
    for axes, ((backbone,), rows) in zip(panels[0], groups, strict=True):
        names = rows["variant"].to_list()
        axes.barh(names, rows["mean"], xerr=_whiskers(rows), color=COLOURS[0], ecolor="#222222", capsize=2)
        axes.set(title=backbone)
        axes.grid(visible=False, axis="y")
    panels[0, 0].invert_yaxis()  # shared by all panels: the grid's first variant on top
    figure.suptitle(folder.name, size=10)
    figure.supxlabel(LABEL, size=9)
    return figure


def router(run: Path) -> Figure:
    """How people of each quartile of activity weigh the views, and go by them; nobody's own figure is drawn (Figure 3)."""
    devices = [Personal.open(folder) for folder in sorted((run / "devices").glob("node-*"))]
    events = np.concatenate([np.diff(block.offsets) for one in devices for block, _ in one.people()])
    quartile = np.searchsorted(np.quantile(events, [0.25, 0.5, 0.75]), events, side="left")
    views = devices[0].task.views
    figure, panels = plt.subplots(2, 1, figsize=(7, 5), sharex=True)
    for axes, read, label in (
        (panels[0], Personal.weights, "router's weight"),
        (panels[1], Personal.reliance, "reliance"),
    ):
        shares = np.concatenate([np.array(list(read(one).values())) for one in devices])
        for number in range(4):
            members = shares[quartile == number]
            parts = axes.boxplot(members, positions=np.arange(len(views)) + 0.19 * (number - 1.5), widths=0.15, whis=(5, 95),
                                 showfliers=False, patch_artist=True, medianprops={"color": "#222222"})  # fmt: skip
            for box in parts["boxes"]:
                box.set(facecolor=plt.get_cmap("Blues")(0.2 + 0.2 * number), linewidth=0.6)
            most = events[quartile == number].max(initial=0)
            parts["boxes"][0].set_label(f"up to {most} events ({len(members)} people)")
        axes.axhline(1 / len(views), color="#8c8c8c", linewidth=0.8, linestyle=":")
        axes.set(ylabel=label, xticks=range(len(views)), xticklabels=views)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    panels[0].set_title(run.name)
    return figure


def _line(axes: Axes, places: list[float] | list[int], rows: pl.DataFrame, label: str) -> None:
    axes.errorbar(places, rows["mean"], yerr=_whiskers(rows), marker="o", markersize=4, capsize=2, label=label)


def _whiskers(rows: pl.DataFrame) -> np.ndarray:
    """Distances from the mean down to the lowest and up to the highest, [2, n_rows]."""
    return np.stack([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])


PLOTS: dict[str, Callable[[Path], Figure]] = {
    "-convergence": convergence,
    "-fraction": fraction,
    "-rates": rates,
    "-fedrap": fedrap_weights,
    "-noise": noise,
    "-modalities": bars,
    "-operators": bars,
}
"""Which picture a grid is drawn as, by the end of its name."""

if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
