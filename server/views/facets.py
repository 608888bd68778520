"""Finds blocks of dimensions that people go by, from sums over people alone.

Kinds of people differ in their fourth moments. So directions start as independent components of people's scaled sums of items
(FastICA, symmetric, cubic; Hyvarinen 1999), are put together by how their squares vary together, and are then turned so that
people's items are as alike as can be in one block. Each step is one sum of a matrix [dim, dim], see
`tessera.client.aspects.facets`; a person's own history leaves no device.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tessera.common.protocol.messages import FacetStep

TURNS = 20
"""Steps that turn the blocks at the end."""
STILL = 1e-4
"""A rotation whose next step is no further from it than this, an entry, has arrived."""

Asker = Callable[[FacetStep, Tensor], tuple[Tensor, float] | None]
"""From a step and items in the coordinates so far [n_items, dim] to people's sum [dim, dim], and how many people it is of; None
where devices hold it back."""


def whitened(features: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A linear map [n_features, dim] to the leading directions of features, in which they have covariance I, and its offset
    [dim]: white = features @ map + offset."""
    features = features.double()
    mean = features.mean(0)
    around = features - mean
    values, vectors = torch.linalg.eigh(around.T @ around / len(features))
    values, vectors = values[-dim:].flip(0), vectors[:, -dim:].flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    into = vectors * values.clamp(min=torch.finfo(torch.float32).eps * float(values[0])).rsqrt()
    return into, -mean @ into


def numbered(dim: int, blocks: int) -> Tensor:
    """Which block each dimension is of, [dim]: blocks of one size, side by side."""
    return torch.arange(dim) * blocks // dim


def most_asks(steps: int) -> int:
    """How many sums `find_facets` asks for at most."""
    return steps + TURNS + 2


def find_facets(ask: Asker, white: Tensor, blocks: int, steps: int, seed: int) -> Tensor:
    """A rotation [dim, dim] of `white` items [n_items, dim] after which the dimensions of a block are a side that people go by.

    `steps` is the most that independent components are looked for; it ends sooner where they stand still, and with what is
    found so far where devices hold a sum back. The first one must not be.
    """
    dim = white.shape[1]
    first = ask("spread", white)
    assert first
    spread, people = first
    values, vectors = torch.linalg.eigh(spread.double() / max(people, 1.0))
    sphere = (vectors * values.clamp(min=1e-6 * float(values[-1])).rsqrt()) @ vectors.T
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=white.dtype)).Q
    for _ in range(steps):
        if (found := ask("independence", white @ sphere @ rotation)) is None:
            return settled(rotation, blocks)
        total, people = found
        turn = polar(total.double() / max(people, 1.0) - 3 * torch.eye(dim, dtype=white.dtype))
        rotation = rotation @ turn
        if float((turn.abs() - torch.eye(dim, dtype=turn.dtype)).abs().max()) < STILL:
            break
    if (found := ask("together", white @ sphere @ rotation)) is None:
        return settled(rotation, blocks)
    rotation = rotation[:, put_together(found[0].double(), blocks)]
    for _ in range(TURNS):
        if (found := ask("cohesion", white @ rotation)) is None:
            break
        turn = polar(found[0].double())
        rotation = rotation @ turn
        if float((turn - torch.eye(dim, dtype=turn.dtype)).abs().max()) < STILL:
            break
    return settled(rotation, blocks)


def settled(rotation: Tensor, blocks: int) -> Tensor:
    """The same blocks, each with a basis of its own subspace that rounding on the way decides nothing about: the subspaces are
    what people's sums say, directions within them and the blocks' order are anybody's."""
    place = torch.arange(1.0, len(rotation) + 1, dtype=rotation.dtype)
    found = []
    for part in rotation.chunk(blocks, 1):
        values, vectors = torch.linalg.eigh(part.T @ (place[:, None] * part))
        basis = part @ vectors
        found.append((float(values.sum()), basis * basis.gather(0, basis.abs().argmax(0, keepdim=True)).sign()))
    return torch.cat([basis for _, basis in sorted(found, key=lambda one: one[0])], 1)


def polar(matrix: Tensor) -> Tensor:
    """The nearest rotation."""
    left, _, right = torch.linalg.svd(matrix)
    turn: Tensor = left @ right
    return turn


def put_together(together: Tensor, blocks: int) -> list[int]:
    """Directions in an order in which those of a block stand side by side, blocks of one size: each begins with whichever of
    the rest varies most with another, and takes what varies most with it."""
    left, order, size = list(range(len(together))), list[int](), len(together) // blocks
    apart = together - torch.diag(together.diag())
    for _ in range(blocks):
        block = [max(left, key=lambda one: float(apart[one, left].max()))]
        left.remove(block[0])
        while len(block) < size:
            block.append(max(left, key=lambda one: float(apart[block, one].mean())))
            left.remove(block[-1])
        order += block
    return order
