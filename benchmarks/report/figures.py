"""The pictures of a report, each an SVG by matplotlib with what it shows in words."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import matplotlib
import numpy as np
import polars as pl
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from tessera.benchmarks.harness.per_user import ACTIVITY, people_of
from tessera.benchmarks.plots import COLOURS, STYLE, router
from tessera.benchmarks.report.facts import GridFacts
from tessera.client.recommend import Personal
from tessera.common.metrics.names import ALL, HR, NDCG, TEST, VALIDATION, MetricName
from tessera.common.protocol.messages import VIEWS
from tessera.server.live.run_info import RunInfo

LEARNS = "Who learns from whom (RELA): the weight of the devices in each column for the device in each row"


@dataclass(frozen=True)
class Picture:
    """An SVG as an address that an <img> takes, its caption, and what can be seen in it for whoever cannot see it."""

    source: str
    caption: str
    words: str


def pictures_of(runs: Sequence[RunInfo]) -> list[Picture]:
    """Curves of all runs; of one simulated run also whom it serves, how routers weigh the views, and how alike these are."""
    _prepare()
    found = [curves(runs)]
    if len(runs) > 1:
        return found
    run = runs[0]
    if isinstance(relevance := run.record.strategy.get("relevance"), dict):
        clients = [str(client) for client in np.array(relevance["clients"])]
        found.append(matrix(np.array(relevance["weights"], dtype=float), clients, LEARNS))
    if run.settings.asks_questions or not run.devices:
        return found
    found.append(served(run))
    if len(Personal.open(run.devices[0]).task.views) > 1:
        found += [weighed(run), similar(run)]
    return found


def pictures_of_grid(grid: GridFacts) -> list[Picture]:
    """The paired differences, where there are any."""
    _prepare()
    return [differences(grid.differences)] if len(grid.differences) else []


def curves(runs: Sequence[RunInfo]) -> Picture:
    """Training loss, validation NDCG and, where there is noise, epsilon by round."""
    noised = any(line.epsilon is not None for run in runs for line in run.rounds)
    figure, panels = plt.subplots(1, 3 if noised else 2, figsize=(11 if noised else 8, 3))
    said = []
    for run in runs:
        losses = run.curve("loss")
        panels[0].plot(*zip(*losses, strict=True) if losses else ([], []), label=run.name)
        k = max(run.settings.evaluation.ks)
        wanted = MetricName(VALIDATION, ALL, NDCG, k)
        points = run.curve(wanted)
        panels[1].plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=3, label=run.name)
        if noised:
            panels[2].plot([line.round for line in run.rounds], [line.epsilon for line in run.rounds], label=run.name)
        if losses:
            said.append(f"{run.name}: loss {losses[0][1]:.3g} to {losses[-1][1]:.3g}")
        if points:
            best = max(points, key=lambda point: point[1])
            said.append(f"{run.name}: validation NDCG@{k} at best {best[1]:.2f}% in round {best[0]}")
    titles = ("training loss", "validation NDCG, %", "epsilon")
    for axes, title in zip(panels, titles, strict=False):
        axes.set(xlabel="round", title=title)
    if len(runs) > 1:
        panels[0].legend(fontsize=8)
    return _picture(figure, "How training went", "; ".join(said) or "no round brought anything")


def served(run: RunInfo) -> Picture:
    """HR and NDCG on test by quartile of people's activity."""
    k = max(run.settings.evaluation.ks)
    found = people_of(run.devices, run.record.selected_round).figures(k)
    groups = [group for group in ACTIVITY.groups if MetricName(TEST, group, HR, k) in found]
    labels = [f"up to {found[MetricName(TEST, group, 'most_events')]:.0f} events" for group in groups]
    figure, panels = plt.subplots(1, 2, figsize=(8, 2.6))
    said = []
    for axes, metric in zip(panels, (HR, NDCG), strict=True):
        values = [found[MetricName(TEST, group, metric, k)] for group in groups]
        axes.bar(labels, values, color=COLOURS[0])
        axes.set(title=f"{metric.upper()}@{k}, %")
        axes.tick_params(axis="x", labelsize=7)
        said.append(
            f"{metric.upper()}@{k} "
            + ", ".join(f"{value:.1f}% ({label})" for value, label in zip(values, labels, strict=True))
        )
    return _picture(figure, "Who is served: people by their number of training events", "; ".join(said))


def weighed(run: RunInfo) -> Picture:
    """How people weigh the views, as distributions."""
    weights = np.concatenate([np.array(list(Personal.open(device).weights().values())) for device in run.devices])
    views = Personal.open(run.devices[0]).task.views
    said = ", ".join(f"{view} {share:.2f}" for view, share in zip(views, np.median(weights, axis=0), strict=True))
    return _picture(router(run.folder), "How people weigh the views, and go by them", f"median weights: {said}")


def similar(run: RunInfo) -> Picture:
    """How alike the views are, by linear CKA (Kornblith et al. 2019)."""
    personal = Personal.open(run.devices[0])
    return matrix(
        alikeness(personal.sent[VIEWS]),
        personal.task.views,
        "How alike the views are (linear CKA: 1 is the same up to a rotation)",
    )


def alikeness(views: Tensor) -> np.ndarray:
    """Linear CKA of each pair of views [n_views, n_items, dim], [n_views, n_views]: |F_i' F_j|^2 / (|F_i' F_i| |F_j' F_j|)."""
    centred = views.double() - views.double().mean(1, keepdim=True)
    crossed = torch.einsum("gnd,hne->ghde", centred, centred).square().sum((2, 3))
    own = crossed.diagonal().sqrt()
    return np.asarray(crossed / (own[:, None] * own[None]).clamp(min=torch.finfo(torch.float64).tiny))


def matrix(values: np.ndarray, names: Sequence[str], caption: str) -> Picture:
    """A square table as shades, with its figures where they can be read."""
    side = max(2.6, 0.55 * len(values))
    figure, axes = plt.subplots(figsize=(side + 0.8, side))
    axes.imshow(
        values, cmap="Blues", vmin=0, vmax=2 * np.nanmax(values, initial=1e-9)
    )  # light enough for black figures
    if len(values) <= 16:
        for (row, column), value in np.ndenumerate(values):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=7)
    if names:
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    return _picture(
        figure, caption, f"{len(values)} by {len(values)}, from {np.nanmin(values):.2f} to {np.nanmax(values):.2f}"
    )


def differences(pairs: pl.DataFrame) -> Picture:
    """Each pair's difference of NDCG with its interval; those that exclude 0 in another colour."""
    rows = pairs.to_dicts()
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.28 * len(rows)))
    said = []
    for place, row in enumerate(rows):
        apart = row["ndcg_low"] > 0 or row["ndcg_high"] < 0
        reach = [[row["ndcg"] - row["ndcg_low"]], [row["ndcg_high"] - row["ndcg"]]]
        axes.errorbar(
            [row["ndcg"]], [place], xerr=reach, fmt="o", markersize=4, capsize=2, color=COLOURS[1 if apart else 0]
        )
        if apart:
            said.append(f"{row['method']} - {row['minus']} {row['ndcg']:+.2f}")
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{row['method']} - {row['minus']}" for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel="difference of NDCG on test, points, 95% interval over people")
    return _picture(figure, "Paired differences", "told apart from 0: " + ("; ".join(said) or "none"))


def _prepare() -> None:
    matplotlib.use("agg")
    plt.rcParams.update(STYLE | {"svg.fonttype": "none", "svg.hashsalt": "tessera"})


def _picture(figure: Figure, caption: str, words: str) -> Picture:
    content = BytesIO()
    figure.savefig(content, format="svg", metadata={"Date": None})
    plt.close(figure)
    return Picture("data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode(), caption, words)
