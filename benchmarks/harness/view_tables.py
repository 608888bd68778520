"""Tables of a bench for runs that were evaluated in more ways than one: among drawn items, and by each view alone."""

from collections.abc import Mapping

import polars as pl

from tessera.common.metrics.collapse import ALIGNMENT, DISTANCE, SEPARABILITY, UNIFORMITY
from tessera.common.metrics.names import ALL, BY, HR, NDCG, SAMPLED, TEST, MetricName, names_in

Columns = Mapping[str, str]


def sampled(rows: pl.DataFrame) -> tuple[str, Columns]:
    """Title and columns of what was ranked among drawn items, at every K."""
    found = [name for name in names_in(rows.columns) if (name.part, name.group) == (TEST, SAMPLED) and name.k]
    return "Each test target among drawn items alone, in %", {name.measure.upper(): str(name) for name in found}


def collapsed(rows: pl.DataFrame, k: int) -> list[tuple[str, Columns]]:
    """Titles and columns of what each view does alone: how well histories seen through it rank, and how it lies on the unit
    sphere (VLM2Rec, arXiv 2603.17450, Fig. 1a and Table 1)."""
    prefix = BY.format("")
    views = dict.fromkeys(name.group for name in names_in(rows.columns) if name.group.startswith(prefix))
    shown = {"fused": ALL, **{view.removeprefix(prefix): view for view in views}}
    ranked = {f"{said} {metric.upper()}@{k}": (group, metric) for said, group in shown.items() for metric in (HR, NDCG)}
    figures = (ALIGNMENT, DISTANCE, UNIFORMITY, SEPARABILITY)
    lies = {f"{said} {one}": (group, one) for said, group in shown.items() for one in figures}
    if not views:
        return []
    ways = {head: str(MetricName(TEST, group, metric, k)) for head, (group, metric) in ranked.items()}
    places = {head: str(MetricName(TEST, group, metric)) for head, (group, metric) in lies.items()}
    about = "squared distance to the target (alignment) and to others (distance), uniformity, separability"
    return [
        ("Histories seen through all views, and through one, against all of an item, test, in %", ways),
        (f"Collapse, test: {about}", places),
    ]
