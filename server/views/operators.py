"""Ways to fuse an item's picture, text and embedding into one vector: the fusion operators g_j of FedVLR (Eq. 2).

Each takes the item's representations by modality, [n_items, n_modalities, dim] (the ID embedding is one of them), and
returns [n_items, dim]. None draws at random or keeps batch statistics: the backward pass goes through what was broadcast.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from tessera.common.errors import ConfigError


class Operator(nn.Module):
    """From [n_items, n_modalities, dim] to [n_items, dim]."""

    def pass_through(self) -> None:
        """Set what would mix dimensions at random to what does not: the modalities already agree on them."""


class Sum(Operator):
    """Element-wise sum, scaled so that its size does not grow with the number of modalities."""

    def __init__(self, n_modalities: int, dim: int) -> None:
        super().__init__()
        self.scale = n_modalities**-0.5

    def forward(self, items: Tensor) -> Tensor:
        """Add the modalities up."""
        total: Tensor = items.sum(1) * self.scale
        return total


class MLP(Operator):
    """A multi-layer perceptron of three layers over the concatenation."""

    def __init__(self, n_modalities: int, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_modalities * dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)
        )

    def pass_through(self) -> None:
        """Start with nothing: the last layer is zero."""
        last = cast(nn.Linear, self.layers[-1])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, items: Tensor) -> Tensor:
        """Fuse the concatenation."""
        fused: Tensor = self.layers(items.flatten(1))
        return fused


class Gate(Operator):
    """Each modality passes a gate of its own, which sees all of them: sum_m sigmoid(W_m x + b_m) * x_m."""

    def __init__(self, n_modalities: int, dim: int) -> None:
        super().__init__()
        self.gates = nn.Linear(n_modalities * dim, n_modalities * dim)

    def forward(self, items: Tensor) -> Tensor:
        """Add up what the gates let through."""
        return (torch.sigmoid(self.gates(items.flatten(1))).view_as(items) * items).sum(1)


class Attention(Operator):
    """A learnt query attends over the modalities: sum_m softmax_m(query . K x_m / sqrt(dim)) V x_m."""

    def __init__(self, n_modalities: int, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(dim))
        # A key's bias would shift all modalities alike, which the softmax does not see.
        self.key, self.value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)

    def pass_through(self) -> None:
        """Start by mixing the modalities as they are."""
        nn.init.eye_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, items: Tensor) -> Tensor:
        """Mix the modalities by attention."""
        attention = torch.softmax(self.key(items) @ self.query / items.shape[-1] ** 0.5, dim=1)
        mixed: Tensor = (attention[:, :, None] * self.value(items)).sum(1)
        return mixed


class Concat(Operator):
    """Each modality has dimensions of its own, so that a user's head weighs them apart, as in VBPR (He & McAuley 2016)."""

    def __init__(self, n_modalities: int, dim: int) -> None:
        super().__init__()
        if dim < n_modalities:
            raise ConfigError(f"views.dim is {dim}: concat needs a dimension for each of {n_modalities} modalities")
        self.register_buffer("owners", torch.arange(dim) * n_modalities // dim, persistent=False)

    def forward(self, items: Tensor) -> Tensor:
        """Take each dimension from the modality that owns it."""
        owners = self.get_buffer("owners")
        return items[:, owners, torch.arange(len(owners), device=items.device)]


OPERATORS: dict[str, Callable[[int, int], Operator]] = {
    "sum": Sum,
    "mlp": MLP,
    "gate": Gate,
    "attention": Attention,
    "concat": Concat,
}
