"""Sends the gradients of few public directions of the views in place of those of all views.

What a person's gradient says of view k is the router's weight phi_k(u) times the same for all views, so that the sum over
people is nearly of rank one over views: C G with C [n_components, n_views], orthonormal and public, says nearly all of
G [n_views, n_items, dim], and C^T C G is what the server takes in its place. Law: `project` is linear, so projections add up,
and `expand(project(G))` is G's part in C's span, which is never longer than G.

C is the sum's own of the round before. That only tells of what lies in the span of the C before it, so a sketch goes along:
the items added up with random signs, S = sum_i s_i G[:, i] [n_views, dim], for which E[S S^T] = sum_i G[:, i] G[:, i]^T
(Alon, Matias & Szegedy 1999), the matrix whose leading eigenvectors are wanted. Every router weighs all views alike at
first, so the start is C = (1, ..., 1) / sqrt(n_views), which loses nothing in round 1. Where gradients are noised, noise would
be all of so small a sketch: none is sent, and C stays as it starts.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from tessera.common.errors import DataError
from tessera.common.protocol.messages import VIEWS, Task
from tessera.common.protocol.tensors import Tensors
from tessera.common.utils import counter_rng

SKETCH = VIEWS + "/sketch"
"""Name of the sketch [n_views, dim] beside the gradients."""
Directions = tuple[tuple[float, ...], ...]
"""Orthonormal rows, [n_components, n_views], as a task says them; none where the gradients of all views are wanted."""
TOLERANCE = 1e-4
"""How far rows may be from orthonormal: float32 is nearer."""


@dataclass(frozen=True)
class Projection:
    """What becomes of gradients by a task's directions [n_components, n_views]; `salt` draws the sketch's signs, None: none."""

    directions: Tensor
    salt: int | None

    @classmethod
    def of(cls, task: Task) -> Self | None:
        """The projection that a task asks for, if any. Raises `DataError` for directions that would not keep lengths: clipping
        and noise rest on that."""
        if not task.components:
            return None
        if {len(row) for row in task.components} != {len(task.views)}:
            raise DataError(f"the server's task has components that are not of its {len(task.views)} views")
        directions = torch.tensor(task.components)
        if not torch.allclose(directions @ directions.T, torch.eye(len(directions)), atol=TOLERANCE):
            raise DataError("the server's task has components that are not orthonormal")
        noised = bool(task.settings.privacy.noise_multiplier)
        return cls(directions, None if noised else counter_rng.key("sketch", task.settings.seed, task.round))

    @property
    def n_views(self) -> int:
        """How many views there are."""
        return self.directions.shape[1]

    def project(self, gradients: Tensors) -> dict[str, Tensor]:
        """C G for the gradients of the views [n_views, n_items, dim], the sketch, and the rest as it is.

        Views beyond the server's are the device's own, which do not leave it, and follow the components as they are.
        """
        views = gradients[VIEWS][: self.n_views]
        along = torch.tensordot(self.directions.to(views), views, 1)
        projected = {**gradients, VIEWS: torch.cat([along, gradients[VIEWS][self.n_views :]])}
        return projected if self.salt is None else {**projected, SKETCH: sketch(views, self.salt)}

    def done(self, gradients: Tensors) -> bool:
        """Whether gradients are projected already; a full set of directions without a sketch changes nothing anyway."""
        return SKETCH in gradients or len(gradients[VIEWS]) < self.n_views

    def outline(self, sent: Tensors) -> dict[str, Tensor]:
        """What gradients for `sent` look like when projected: tensors with shapes and types, and no content."""
        shapes = {name: torch.empty_like(value, device="meta") for name, value in sent.items()}
        views = shapes[VIEWS]
        outlined = {**shapes, VIEWS: views[:1].expand(len(self.directions), -1, -1)}
        return outlined if self.salt is None else {**outlined, SKETCH: views[:, 0]}


def start(n_views: int) -> Tensor:
    """The first direction, [1, n_views]: the mean of all views."""
    return torch.full((1, n_views), n_views**-0.5)


def sketch(views: Tensor, salt: int) -> Tensor:
    """Add up the items of `views` [n_views, n_items, dim] with random signs, [n_views, dim]."""
    draws = counter_rng.mix(salt, torch.arange(views.shape[1])) & 1
    return torch.einsum("vid,i->vd", views, (1 - 2 * draws).to(views))


def expand(gradients: Tensors, directions: Tensor) -> dict[str, Tensor]:
    """Undo `Projection.project` on a sum, as far as it can be: C^T C G, without the sketch; gradients of all views stay."""
    rest = {name: value for name, value in gradients.items() if name != SKETCH}
    along = rest.get(VIEWS)
    if along is None or len(along) != len(directions) or len(along) == directions.shape[1]:
        return rest
    return {**rest, VIEWS: torch.tensordot(directions.T.to(along), along, 1)}


def leading(summed: Tensor, explained: float) -> Tensor:
    """The fewest directions that hold the share `explained` of a sketch's squares, [n_components, n_views]; where that takes
    all of them, the views themselves."""
    flat = summed.double()
    sizes, vectors = torch.linalg.eigh(flat @ flat.T)
    left = 1 - sizes.flip(0).clamp(min=0).cumsum(0) / sizes.sum()
    n_components = min(int((left > 1 - explained).sum()) + 1, len(sizes))
    if n_components == len(sizes):
        return torch.eye(len(sizes))
    directions: Tensor = vectors.flip(1)[:, :n_components].T
    upright = torch.where(directions.sum(1, keepdim=True) < 0, -directions, directions)  # either sign would do
    return upright.float().contiguous()
