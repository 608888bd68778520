"""Aligns the A and B of PQ-LoRAs across towers of different size, by what corresponding layers see on public data.

P and Q can only mean the same in two towers if A reads the same from both and B writes the same into both. All functions
take one `Activations` a tower, whose rows are the same examples, and give one `Projections` a tower.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.common.errors import ConfigError
from tessera.common.towers.projections import Projections, polar, random_projections
from tessera.common.utils import counter_rng

STEPS, RATE = 300, 0.02
RIDGE, GRADIENT_RIDGE = 0.01, 0.1
ALL_EIGENVECTORS = 1024
"""Width of all towers together up to which all directions are computed: that takes its cube."""
SPARE, ITERATIONS, TOLERANCE = 8, 200, 1e-6
"""Of the search for the leading directions of wider ones: how many more are carried along, and when it ends."""
STRENGTH = 3.0
"""Norm of a column of B by `effects`, in the mean: directions that all towers share move answers less than random ones."""


@dataclass(frozen=True)
class Activations:
    """What a base layer receives, `inputs` [n_examples, d_in], and computes, `outputs` [n_examples, d_out].

    `gradients` [n_gradients, d_out] are those of the tower's answers by the outputs, a row an example and a direction of the
    answer.
    """

    inputs: Tensor
    outputs: Tensor
    gradients: Tensor | None = None


def random(towers: Sequence[Activations], rank: int, salt: int) -> list[Projections]:
    """No alignment: the control that every other must beat."""
    _check(towers, rank)
    return [
        random_projections(counter_rng.key(salt, number), tower.inputs.shape[1], tower.outputs.shape[1], rank)
        for number, tower in enumerate(towers)
    ]


def paper(towers: Sequence[Activations], rank: int, salt: int, orthogonality: float = 0.5) -> list[Projections]:
    """FedMosaic's own alignment to the tower with the smallest inputs (Algorithms 3 and 4).

    A by the squared distance to the pivot's outputs with a penalty (Eq. 20, in its form ||A A^T - I_r||^2), then its polar
    factor (Eq. 23); B by CCA between the outputs of B (A x) (Eq. 19).
    """
    start = random(towers, rank, salt)
    first = min(range(len(towers)), key=lambda number: towers[number].inputs.shape[1])
    pivot, wanted = start[first], towers[first].inputs @ start[first].a.T
    aligned = []
    for number, (tower, own) in enumerate(zip(towers, start, strict=True)):
        if number != first:
            a = polar(_fit(own.a, tower.inputs, wanted, orthogonality))
            own = Projections(a, _carry(pivot.b, wanted @ pivot.b.T, tower.inputs @ a.T @ own.b.T), own.offset)
        aligned.append(own)
    return aligned


def whitened(towers: Sequence[Activations], rank: int, salt: int = 0) -> list[Projections]:
    """The directions in which all towers agree most; nothing is drawn, and `salt` changes nothing.

    A = V_r^T C^-1/2 on centred inputs, B = polar(C^1/2 V_r) of the outputs, with C a tower's covariance and V its part of
    the leading eigenvectors of all whitened covariances together. For two towers that is the SVD of the whitened
    cross-covariance, and B_j is the polar factor of the CCA map of a B_i in the shared subspace.
    """
    _check(towers, rank)
    sources = _shared_directions([tower.inputs - tower.inputs.mean(0) for tower in towers], rank)
    sinks = _shared_directions([tower.outputs - tower.outputs.mean(0) for tower in towers], rank)
    aligned = []
    for tower, (source, shrink, _), (sink, _, stretch) in zip(towers, sources, sinks, strict=True):
        dtype = tower.inputs.dtype
        a = (source.T @ shrink).to(dtype)
        aligned.append(Projections(a, polar(stretch @ sink).to(dtype), -(a @ tower.inputs.mean(0))))
    return aligned


def effects(towers: Sequence[Activations], rank: int, salt: int = 0) -> list[Projections]:
    """A as `whitened`; B such that what it writes moves the answers of all towers alike, whatever outputs mean inside.

    The gradients are G; B is C^-1/2 V of theirs, uncentred, so that G_i B_i = G_j B_j as nearly as can be. Where also
    A_i x = A_j x, any P and Q change all towers' answers alike, to first order. All B of a place have one scale, which keeps
    that so. Raises `ConfigError` when a tower comes without gradients.
    """
    readings = whitened(towers, rank, salt)
    gradients = [tower.gradients for tower in towers if tower.gradients is not None]
    if len(gradients) < len(towers):
        raise ConfigError("towers are aligned by their effects only where the gradients of their answers are known")
    sinks = [shrink @ sink for sink, shrink, _ in _shared_directions(gradients, rank, GRADIENT_RIDGE)]
    scale = STRENGTH * rank**0.5 * len(sinks) / sum(float(sink.norm()) for sink in sinks)
    return [
        Projections(own.a, (scale * sink).to(own.b.dtype), own.offset)
        for own, sink in zip(readings, sinks, strict=True)
    ]


Alignment = Callable[[Sequence[Activations], int, int], list[Projections]]
ALIGNMENTS: dict[str, Alignment] = {"paper": paper, "whitened": whitened, "effects": effects, "random": random}


def difference(one: Tensor, other: Tensor) -> float:
    """How far two towers' readings [n_examples, rank] lie apart, relative to the first: ||one - other|| / ||one||."""
    return float((one - other).norm() / one.norm())


def _check(towers: Sequence[Activations], rank: int) -> None:
    sizes = {len(part) for tower in towers for part in (tower.inputs, tower.outputs)}
    narrowest = min(part.shape[1] for tower in towers for part in (tower.inputs, tower.outputs))
    if len(sizes) != 1:
        raise ConfigError(f"towers must have seen the same examples, not {sorted(sizes)} of them")
    if not 1 <= rank <= min(narrowest, *sizes):
        raise ConfigError(f"rank {rank} does not fit layers of width {narrowest} seen on {sizes.pop()} examples")


def _fit(start: Tensor, inputs: Tensor, wanted: Tensor, orthogonality: float) -> Tensor:
    """A [rank, d_in] that brings A x to `wanted` [n_examples, rank], kept near orthonormal rows."""
    a = start.clone().requires_grad_()
    identity = torch.eye(len(start), dtype=start.dtype)
    optimizer = torch.optim.Adam([a], RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        distance = (inputs @ a.T - wanted).square().sum(1).mean()
        (distance + orthogonality * (a @ a.T - identity).square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return a.detach()


def _carry(b: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """(Pi_j^+)^T Pi_i^T B_i (Eq. 19), with Pi from the CCA of outputs `one` and `other` [n_examples, d_out]."""
    rank = b.shape[1]
    u_i, s_i, v_i = _svd(one - one.mean(0), rank)
    u_j, s_j, v_j = _svd(other - other.mean(0), rank)
    left, _, right = torch.linalg.svd(u_i.T @ u_j)
    # Pi_i = V_i S_i^-1 left and Pi_j = V_j S_j^-1 right^T, whose pseudo-inverse is right S_j V_j^T.
    carried: Tensor = v_j @ (s_j[:, None] * (right.T @ left.T)) @ ((v_i / s_i).T @ b)
    return carried


def _svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank].clamp(min=1e-9), vt[:rank].T


def _shared_directions(seen: Sequence[Tensor], rank: int, ridge: float = RIDGE) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each tower V [d, rank], C^-1/2 and C^1/2 [d, d], in double precision (MAXVAR's generalised CCA)."""
    parts = [part.double() for part in seen]
    roots, widths = [_roots(part, ridge) for part in parts], [part.shape[1] for part in seen]
    # A tower agrees with itself entirely. Of wide layers the products are what costs, so each pair's is taken once.
    agreement = torch.eye(sum(widths), dtype=torch.float64)
    blocks = torch.split(agreement, widths)
    for i, j in itertools.combinations(range(len(parts)), 2):
        shared = roots[i][0] @ (parts[i].T @ parts[j] / len(parts[i])) @ roots[j][0]
        torch.split(blocks[i], widths, dim=1)[j].copy_(shared)
        torch.split(blocks[j], widths, dim=1)[i].copy_(shared.T)
    leading = _leading(agreement, rank)
    directions = (leading * len(seen) ** 0.5).split(widths)
    return [(part, shrink, stretch) for part, (shrink, stretch) in zip(directions, roots, strict=True)]


def _leading(agreement: Tensor, rank: int) -> Tensor:
    """The leading eigenvectors [d, rank], the largest first: of layers as wide as language models' no others are computed,
    unless more than a third of all are asked for, which cannot be searched."""
    if len(agreement) <= ALL_EIGENVECTORS or len(agreement) < 3 * (rank + SPARE):
        computed: Tensor = torch.linalg.eigh(agreement).eigenvectors[:, -rank:].flip(1)
        return computed
    places = torch.arange(len(agreement) * (rank + SPARE)).view(len(agreement), -1)
    begun = counter_rng.normal(counter_rng.key("leading"), places).double()
    _, vectors = torch.lobpcg(agreement, X=begun, niter=ITERATIONS, tol=TOLERANCE)
    return vectors[:, :rank]


def _roots(rows: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """C^-1/2 and C^1/2 of the second moments of `rows` [n, d], with a ridge of a share of their mean eigenvalue."""
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    values = values.clamp(min=0) + ridge * values.mean()
    return vectors * values.rsqrt() @ vectors.T, vectors * values.sqrt() @ vectors.T
