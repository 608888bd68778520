"""Trains the learnt baselines: Adam on sampled pairs, stopped early by the validation items."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, softplus

from tessera.benchmarks.baselines.base import Baseline, validation_ndcg
from tessera.client.histories import Histories, histories
from tessera.client.losses import sample_negatives
from tessera.common.data.catalogue import Catalogue
from tessera.common.data.interactions import Split
from tessera.common.errors import DataError, RunError
from tessera.common.utils import counter_rng


class Model(nn.Module):
    """Embeddings whose inner product is the score. `penalty` weighs its regulariser, whichever it has."""

    def begin_epoch(self) -> None:
        """Draw anew what is drawn once an epoch."""

    @abstractmethod
    def forward(self) -> tuple[Tensor, Tensor]:
        """Embed all users [n_users, width] and items [n_items, width]."""

    @abstractmethod
    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """One value for a batch of (user, item they have, item they have not), each [n_batch]."""


@dataclass
class TrainedBaseline(Baseline):
    """A baseline with a `Model`, early stopping and the settings that all of them share."""

    QUICK: ClassVar[Mapping[str, Any]] = {"epochs": 3}
    SEEDED: ClassVar[bool] = True

    learning_rate: float = 1e-3
    penalty: float = 1e-4
    dim: int = 64
    batch: int = 2048
    epochs: int = 200
    patience: int = 15
    """Epochs without a better validation NDCG@50 before training stops; the best epoch is kept."""
    best_epoch: int = field(default=0, init=False)

    @abstractmethod
    def build(self, people: Histories, catalogue: Catalogue) -> Model:
        """Make the model at its random start."""

    def fit(self, split: Split, catalogue: Catalogue, seed: int) -> None:
        """Train on the training items and keep the embeddings of the epoch that ranks the validation items best."""
        people = histories(split)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(counter_rng.key("peer", seed))
            self._keys, self._model = people.keys, self.build(people, catalogue)
            self._train(self._model, people, split, seed)

    def scores(self, known: Histories) -> Tensor:
        """Inner products, [n_users, n_items]. What is known of the users beyond `fit` is not used."""
        if not torch.equal(known.keys, self._keys):
            raise DataError("a trained baseline scores exactly the users it was fitted on")
        return self._scored(self._model, known)

    def _scored(self, model: Model, known: Histories) -> Tensor:
        users, items = _embeddings(model)
        return users @ items.T

    def remarks(self) -> dict[str, float]:
        """Which epoch validation chose."""
        return {"best epoch": float(self.best_epoch)}

    def _train(self, model: Model, people: Histories, split: Split, seed: int) -> None:
        """Leave the model as the best epoch did."""
        optimizer = torch.optim.Adam(model.parameters(), lr=self.learning_rate)
        best, highest = model.state_dict(), -1.0
        for epoch in range(1, self.epochs + 1):
            self._epoch(model, optimizer, people, counter_rng.key("peer negatives", seed, epoch))
            reached = validation_ndcg(self._scored(model, people), people, split)
            if reached > highest:
                highest, self.best_epoch = reached, epoch
                best = {name: value.clone() for name, value in model.state_dict().items()}
            elif epoch - self.best_epoch >= self.patience:
                break
        model.load_state_dict(best)

    def _epoch(self, model: Model, optimizer: torch.optim.Optimizer, people: Histories, salt: int) -> None:
        model.train()
        model.begin_epoch()
        for loss in self._losses(model, people, salt):
            if not loss.isfinite():
                raise RunError(f"training {type(self).__name__}: the loss is {loss}; lower the learning rate")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _losses(self, model: Model, people: Histories, salt: int) -> Iterator[Tensor]:
        """The loss of each batch of an epoch in turn."""
        negatives = sample_negatives(people, 1, salt)[:, 0]
        for rows in torch.randperm(len(people.items)).split(self.batch):
            yield model.loss(people.owners[rows], people.items[rows], negatives[rows])


def _embeddings(model: Model) -> tuple[Tensor, Tensor]:
    model.eval()
    with torch.no_grad():
        users, items = model()
    return users, items


def table(n_rows: int, width: int) -> nn.Parameter:
    """A trainable embedding table with Glorot's uniform start, [n_rows, width]."""
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(n_rows, width)))


def content(catalogue: Catalogue) -> dict[str, Tensor]:
    """Every modality's standardised features, scaled to a mean squared norm of 1, by name: [n_items, n_features] each."""
    tables = {name: torch.from_numpy(features.standardised()) for name, features in catalogue.features.items()}
    if not tables:
        raise DataError("this baseline needs features of the items, and the catalogue has none")
    return {name: values / values.shape[1] ** 0.5 for name, values in tables.items()}


def bpr(users: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """Bayesian personalised ranking (Rendle et al., UAI 2009): mean of -ln sigmoid(x_ui - x_uj) over rows of embeddings."""
    return softplus((users * (negatives - positives)).sum(1)).mean()


def half_squares(*rows: Tensor) -> Tensor:
    """Half the squared norms of the rows [n_batch, width] a batch touched, summed over tables, averaged over the batch."""
    return torch.stack([values.square().sum() / len(values) for values in rows]).sum() / 2


def info_nce(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """InfoNCE of two views with unit rows [n, width]: row i of one belongs to row i of the other, all others are negatives."""
    logits = normalize(first, dim=1) @ normalize(second, dim=1).T / temperature
    return cross_entropy(logits, torch.arange(len(first)))
