"""Measures how well the demo shop's users are understood: their true reliance beside what their devices learnt of it.

Only a generated shop has the truth, and only a simulation may put it beside what devices keep to themselves: all of this is
read from the folders of simulated devices, person by person, and no message carries any of it.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from tessera.client import cohort
from tessera.client.histories import histories
from tessera.client.recommend import Personal
from tessera.common.data.targets import Targets
from tessera.common.metrics.names import NDCG
from tessera.common.metrics.ranking import standing
from tessera.common.metrics.several import person_values
from tessera.common.utils.tables import read_table

TRUTH = {"reliance_image": "image", "reliance_text": "text", "reliance_crowd": "id"}


def reliances(dataset: Path, devices: tuple[Path, ...]) -> pl.DataFrame:
    """Each person's reliances: user, and by modality the true one, reliance_*, the learnt, learnt_*, and the router's
    weights alone, weight_*; in the truth's order.

    The learnt one is that of `tessera.client.recommend`, as shares of the three single views; crowd is the ID view. The true
    one is the same of the true scores: how far apart picture, words and crowd set the items, as shares.
    """
    people = [Personal.open(folder) for folder in devices]
    truth = read_table(dataset / "users.parquet", ("user", *TRUTH))
    learnt = _singles(people, "learnt", Personal.reliance)
    weights = _singles(people, "weight", Personal.weights)
    return truth.join(learnt, on="user", maintain_order="left").join(weights, on="user", maintain_order="left")


def correlations(people: pl.DataFrame, kind: str = "learnt") -> dict[str, float]:
    """Spearman correlation over people of the true reliance and that of a kind, for each of the three, and their mean."""
    names = [column.removeprefix("reliance_") for column in TRUTH]
    found = {name: spearman(people[f"reliance_{name}"], people[f"{kind}_{name}"]) for name in names}
    return found | {"mean": float(np.mean(list(found.values())))}


def gains(devices: tuple[Path, ...], k: int) -> pl.DataFrame:
    """How well each person is served: user, and gain, the mean of NDCG@k of their validation and their test items, in %."""
    rows: list[tuple[str, float]] = []
    for folder in devices:
        personal = Personal.open(folder)
        for split, private in personal.people():
            known = histories(split)
            scores = cohort.scores(private, personal.sent, known, personal.task.settings.local)[0]
            seen = histories(split, split.validation).mask()
            parts = [_gain(scores, split.validation, ~known.mask(), k), _gain(scores, split.test, ~seen, k)]
            rows += zip(split.users, torch.stack(parts).nanmean(0).tolist(), strict=True)
    return pl.DataFrame(rows, schema={"user": pl.String, "gain": pl.Float64}, orient="row")


def spearman(left: pl.Series, right: pl.Series) -> float:
    """Correlation of average ranks."""
    return float(pl.select(pl.corr(left, right, method="spearman")).item())


def _singles(people: list[Personal], kind: str, read: Callable[[Personal], dict[str, list[float]]]) -> pl.DataFrame:
    """What `read` says of everybody's views, as shares of the three single ones: user, KIND_image, KIND_text, KIND_crowd."""
    rows: list[tuple[str | float, ...]] = []
    for personal in people:
        columns = [personal.task.views.index(view) for view in TRUTH.values()]
        found = read(personal)
        shares = np.array(list(found.values()))[:, columns]
        rows += zip(found, *(shares / shares.sum(axis=1, keepdims=True)).T.tolist(), strict=True)
    return pl.DataFrame(rows, schema=["user", *(name.replace("reliance", kind) for name in TRUTH)], orient="row")


def _gain(scores: Tensor, targets: Targets, candidates: Tensor, k: int) -> Tensor:
    """NDCG@k in % of all of a person's targets, [n_users]; nan for who has none."""
    gain = torch.full((len(scores),), torch.nan, dtype=torch.float64)
    if not len(targets):
        return gain
    owners, items = torch.from_numpy(targets.owners), torch.from_numpy(targets.items)
    above, ties = standing(scores[owners], items, candidates[owners])
    people, values = person_values(owners, above, ties, (NDCG,), (k,))
    gain[people] = 100 * values[NDCG, k].double()
    return gain
