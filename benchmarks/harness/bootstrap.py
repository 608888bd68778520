"""How sure the difference between two methods is: a bootstrap over people, each compared with themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from tessera.benchmarks.harness.per_user import METRICS
from tessera.common.utils import counter_rng

NAMES = dict.fromkeys(("dataset", "method", "minus"), pl.String)
DIFFERENCES = NAMES | {f"{metric}{end}": pl.Float64 for metric in METRICS for end in ("", "_low", "_high")}
"""Columns of the differences: method minus another, and the ends of their 95% intervals, in points of %."""
RESAMPLES = 10_000
CHUNK = 100
"""Resamples drawn at once, which bounds the memory."""


def paired_differences(
    people: Mapping[str, Sequence[pl.DataFrame]], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Mean difference of each pair of methods in HR and NDCG, in points of %, with its 95% interval over people.

    `people` holds a table a seed; a person's results are averaged over seeds first, so the interval is about
    other people, not other seeds. Pairs of which one is missing are left out, and so are people whom not every method that
    is compared has: where seeds draw who is evaluated, and one of them failed.
    """
    pairs = [pair for pair in pairs if people.get(pair[0]) and people.get(pair[1])]
    if not pairs:
        return []
    frames = {method: pl.concat(people[method]) for pair in pairs for method in pair}
    everybody = set.intersection(*(set(frame["user"]) for frame in frames.values()))
    means = {method: _over_seeds(frame.filter(pl.col("user").is_in(everybody))) for method, frame in frames.items()}
    values = np.concatenate([means[left] - means[right] for left, right in pairs], axis=1)
    low, high = np.quantile(bootstrap(values), [0.025, 0.975], axis=0)
    rows = []
    for number, (left, right) in enumerate(pairs):
        row: dict[str, Any] = {"method": left, "minus": right}
        for column, metric in enumerate(METRICS, start=len(METRICS) * number):
            row |= {
                metric: float(values[:, column].mean()),
                f"{metric}_low": low[column],
                f"{metric}_high": high[column],
            }
        rows.append(row)
    return rows


def bootstrap(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of `values` [n_people, n_columns] over people drawn with replacement, all columns alike: [RESAMPLES, n_columns]."""
    random, n = np.random.default_rng(abs(counter_rng.key("bootstrap"))), len(values)
    draws = (random.multinomial(n, np.full(n, 1 / n), size=CHUNK) for _ in range(RESAMPLES // CHUNK))
    return np.concatenate([counts @ values / n for counts in draws])


def _over_seeds(people: pl.DataFrame) -> NDArray[np.float64]:
    """Each person's HR and NDCG, averaged over seeds, in the order of their names: [n_people, 2]."""
    means = people.group_by("user").agg(pl.col(METRICS).mean()).sort("user")
    return means.select(METRICS).to_numpy()
