"""The reference client: FedVLR's Algorithm 1 line by line, one user at a time, each with modules and an optimiser.

It is what the fast code is compared with: in the tests for equality, and in cohort_speed.py for time. Draws (negatives, hidden
history) are the fast code's own, taken one user at a time, so that the results can be compared to the last digits.
"""

import copy

import torch
from torch import Tensor, nn

from tessera.client.histories import Histories, single
from tessera.client.losses import sample_negatives
from tessera.common.config.settings import LocalSettings
from tessera.common.registry.losses import BCESettings, NextItemSettings
from tessera.common.utils import counter_rng


class NaiveClient(nn.Module):
    """One user's device: router phi_u and prediction model theta_u over the whole catalogue."""

    def __init__(self, n_views: int, dim: int, backbone: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = backbone
        self.scale = nn.Parameter(torch.zeros(n_views, dim, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(n_views, dtype=dtype))
        self.theta = nn.Parameter(torch.zeros(dim, dtype=dtype))
        self.offset = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, views: Tensor, history_view: Tensor | None, items: list[int], counts: Tensor) -> Tensor:
        """Eq. 3-5: weights from the history, each item as it counts, personalised items, scores of all items."""
        pooled = (counts[:, None] * views[:, items]).sum(1) / counts.sum().clamp(min=1)
        normal = nn.functional.layer_norm(pooled, (views.shape[-1],))
        weights = torch.softmax((self.scale * normal).sum(1) / views.shape[-1] ** 0.5 + self.bias, dim=0)
        personal = torch.einsum("g,gnd->nd", weights, views)
        if self.backbone == "fedavg":
            return personal @ self.theta + self.offset
        assert history_view is not None
        summed = (counts[:, None] * history_view[items]).sum(0)
        return personal @ (summed / counts.norm().clamp(min=1) + self.theta)


def naive_loss(scores: Tensor, history: Histories, settings: LocalSettings, salt: int) -> Tensor:
    """Eq. 6 for one user."""
    items = history.items
    if settings.loss.name == "softmax":
        return nn.functional.cross_entropy(scores.expand(len(items), -1), items)
    assert isinstance(settings.loss, BCESettings)
    negatives = sample_negatives(history, settings.loss.negatives, salt).flatten()
    labels = torch.cat([torch.ones(len(items)), torch.zeros(len(negatives))]).to(scores.dtype)
    return nn.functional.binary_cross_entropy_with_logits(scores[torch.cat([items, negatives])], labels)


def naive_counts(shown: Tensor, recency: float) -> Tensor:
    """What each event of one history counts: nothing if hidden, and less with the number of events after it."""
    last = len(shown) - 1
    return (
        torch.stack([seen * (1 + last - place) ** -recency for place, seen in enumerate(shown)]) if last >= 0 else shown
    )


def naive_next(
    client: NaiveClient,
    sent: dict[str, Tensor],
    items: list[int],
    history: Histories,
    settings: LocalSettings,
    salt: int,
) -> Tensor:
    """The next event from those before it, at each cut of one history, one after the other."""
    assert isinstance(settings.loss, NextItemSettings)
    before, asked = history.cuts(settings.loss.next_item_samples, salt)
    shown = before.hidden(settings.history_mask, salt).shown.split(before.lengths().tolist())
    losses = []
    for seen, target in zip(shown, asked.items, strict=True):
        counts = naive_counts(seen, settings.recency)
        scores = client(sent["views"], sent.get("history"), items[: len(seen)], counts)
        losses.append(nn.functional.cross_entropy(scores, target))
    return torch.stack(losses).mean()


def naive_optimizer(parameters: list[nn.Parameter], settings: LocalSettings) -> torch.optim.Optimizer:
    """The optimiser that torch users would take."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.AdamW}[settings.optimizer]
    return kind(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)


def personalized_refinement(
    client: NaiveClient,
    generator: nn.Module,
    user: str,
    items: list[int],
    n_items: int,
    settings: LocalSettings,
    seed: int,
    round: int,
) -> tuple[float, dict[str, Tensor]]:
    """Alg. 1, PersonalizedRefinement with every parameter on the client: gradients of D and gamma_j, summed over the epochs."""
    generator = copy.deepcopy(generator)
    optimizer = naive_optimizer(list(client.parameters()), settings)
    dtype = client.scale.dtype
    history = single(items, n_items, user).to(torch.device("cpu"), dtype)
    loss = torch.zeros(())
    generator.zero_grad()
    for epoch in range(settings.local_epochs):
        salt = counter_rng.key("epoch", seed, round, epoch)
        sent = generator()
        optimizer.zero_grad()
        if settings.loss.name == "next":
            loss = naive_next(client, sent, items, history, settings, salt)
        else:
            counts = naive_counts(history.hidden(settings.history_mask, salt).shown, settings.recency)
            loss = naive_loss(client(sent["views"], sent.get("history"), items, counts), history, settings, salt)
        loss.backward()  # adds to the gradients of D and gamma_j; theta_u and phi_u start from zero each epoch
        optimizer.step()
    return float(loss.detach()), {name: p.grad for name, p in generator.named_parameters() if p.grad is not None}


class Received(nn.Module):
    """What a device was sent, as if it were a generator: its gradients are those of the views themselves."""

    def __init__(self, sent: dict[str, Tensor]) -> None:
        super().__init__()
        self.sent = nn.ParameterDict({name: nn.Parameter(value.clone()) for name, value in sent.items()})

    def forward(self) -> dict[str, Tensor]:
        """Give what was sent."""
        return dict(self.sent)
