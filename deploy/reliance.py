"""How well the demo shop's users were understood: their true reliance against what their routers learnt.

Only a generated shop has the truth, and only a simulation may put it beside the devices' private weights.
"""

from pathlib import Path

import numpy as np
import polars as pl

from client.recommend import Personal
from common.catalogue import read_table

TRUTH = {"reliance_image": "image", "reliance_text": "text", "reliance_crowd": "id"}


def reliance_correlation(dataset: Path, devices: tuple[Path, ...]) -> dict[str, float]:
    """Spearman correlation over users of true reliance and learnt weight, for picture, text and crowd, and their mean.

    What was learnt is the router's weight on a single modality's view, as a share of the three; crowd is the ID view.
    """
    truth = read_table(dataset / "users.parquet", ("user", *TRUTH))
    learnt: dict[str, list[float]] = {}
    for folder in devices:
        personal = Personal.open(folder)
        columns = [personal.task.views.index(view) for view in TRUTH.values()]
        learnt |= {user: [weights[column] for column in columns] for user, weights in personal.weights().items()}
    shares = np.array([learnt[user] for user in truth["user"]])
    shares /= shares.sum(axis=1, keepdims=True)
    pairs = {
        column.removeprefix("reliance_"): (truth[column].to_numpy(), shares[:, n]) for n, column in enumerate(TRUTH)
    }
    found = {name: _spearman(*pair) for name, pair in pairs.items()}
    return found | {"mean": float(np.mean(list(found.values())))}


def _spearman(left: np.ndarray, right: np.ndarray) -> float:
    """Correlation of average ranks."""
    frame = pl.DataFrame({"left": left, "right": right}).select(pl.all().rank("average"))
    return float(np.corrcoef(frame["left"], frame["right"])[0, 1])
