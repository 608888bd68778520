"""What the server asks of all clients before they train, as sums over their people: statistics, baselines, a spectral start."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.common.config.settings import Settings
from tessera.common.data.catalogue import Catalogue
from tessera.common.errors import RunError
from tessera.common.metrics.names import Scores
from tessera.common.metrics.ranking import percentages
from tessera.common.protocol.messages import BASIS, CONTENT, COUNTS
from tessera.common.protocol.tensors import Tensors
from tessera.server.aggregate import Aggregate
from tessera.server.strategies.base import Strategy
from tessera.server.tasks import Tasks
from tessera.server.views.spectral_init import leading_vectors


@dataclass(frozen=True)
class Statistics:
    """How many people and events there are, and how often each item occurs in training.

    `counts` holds a vector [n_items], or nothing where a device withholds its own: then warm and cold targets cannot be told
    apart.
    """

    answer: Aggregate
    counts: Tensors
    began: float

    @property
    def people(self) -> float:
        """People who are there to train."""
        return self.answer.update.sums["users"]


def item_statistics(tasks: Tasks, n_items: int) -> Statistics:
    """Ask all clients for their sums. Raises `RunError` where nobody is there to train."""
    began = time.monotonic()
    answer = tasks.send("item_statistics", counts={COUNTS: torch.Size([n_items])})
    if not answer.update.sums["users"]:
        raise RunError("no device has anybody to train")
    counts = {} if answer.update.sums["withheld"] else {COUNTS: answer.update.counts[COUNTS]}
    return Statistics(answer, counts, began)


def baseline_scores(tasks: Tasks, catalogue: Catalogue, counts: Tensors) -> Scores:
    """Have the clients evaluate the rankings that need no learning."""
    inputs = {} if tasks.settings.asks_questions else {**counts, **_content(catalogue)}
    return percentages(tasks.send("baselines", inputs).update.sums)


def spectral_start(tasks: Tasks, strategy: Strategy, n_items: int, settings: Settings) -> None:
    """Start the item embeddings from singular vectors of the interactions, found in a few additive rounds."""
    views = settings.views

    def product(basis: Tensor) -> Tensor:
        return tasks.send("power", {BASIS: basis}, {BASIS: basis.shape}).update.counts[BASIS]

    rank = min(views.dim, views.id_dim, n_items)
    strategy.initialise(*leading_vectors(product, n_items, rank, views.spectral_rounds, settings.seed))


def _content(catalogue: Catalogue) -> dict[str, Tensor]:
    """Unit feature rows by modality, for the content baselines; missing items are zero and so rank as average."""
    tables = {}
    for name, features in catalogue.features.items():
        table = torch.from_numpy(features.standardised())
        table[~torch.from_numpy(features.present)] = 0
        tables[CONTENT + name] = torch.nn.functional.normalize(table, dim=1).half()
    return tables
