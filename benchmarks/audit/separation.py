"""Takes the sum over a group's people apart into histories, without knowing whose they are.

In a sum of dL/dH, or of X^T X B, an item's row is sum_u a_ui g_u: a direction g_u of each person who has it, times a number
that is not negative. Rows of items that one person alone has are parallel. So:

1. Items whose rows are parallel, in more than half of the answers that hold both, are one person's. So can those be that the
   same people share: such directions are sums of others', and are left out.
2. In each answer a person's direction is the mean of the rows of these items, and every other row is solved for what each
   person adds, which is not negative.
3. A person's history are the items of which that is more than a little, in any answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PARALLEL = 0.999
"""Cosine above which two rows are parallel."""
LEAST = 0.05
"""Share of a row that a person must explain to be thought to have its item."""
STEPS = 200
"""Of the descent that solves rows for what is not negative."""


@dataclass(frozen=True)
class Rows:
    """Rows [n, width] of the `items` [n] that are not zero."""

    items: Tensor
    table: Tensor

    @classmethod
    def of(cls, table: Tensor) -> "Rows":
        """Those of a table [n_items, width]; what rounding leaves of zeros is left out."""
        lengths = table.norm(dim=1)
        items = (lengths > 1e-4 * lengths.max()).nonzero().flatten()
        return cls(items, table[items])


def separated(answers: Sequence[Rows], people: int) -> list[frozenset[int]]:
    """Histories found in all answers of a group of so many people."""
    if not any(len(answer.items) for answer in answers):
        return []
    items = torch.cat([answer.items for answer in answers]).unique()
    clusters = _extreme(max(answers, key=lambda one: len(one.items)), _clusters(answers, items))[:people]
    found = torch.zeros(len(clusters), int(items.max()) + 1)
    for answer in answers:
        _solve(answer, clusters, found)
    return [frozenset(row.nonzero().flatten().tolist()) for row in found > 0]


def _clusters(answers: Sequence[Rows], items: Tensor) -> list[Tensor]:
    """Items of one person alone, person by person, those with the most first; two at least."""
    together, parallel = torch.zeros(2, len(items), len(items))
    for answer in answers:
        at = torch.searchsorted(items, answer.items)
        unit = torch.nn.functional.normalize(answer.table, dim=1)
        together[at[:, None], at] += 1
        parallel[at[:, None], at] += (unit @ unit.T > PARALLEL).float()
    alike = (parallel > 0.5 * together) & (together > 0)
    alike.fill_diagonal_(False)
    left, clusters = alike.any(1), []
    while left.any():
        first = int((alike.sum(1) * left).argmax())
        cluster = alike[first].clone()
        cluster[first] = True
        cluster &= left
        left &= ~cluster
        left[first] = False
        if cluster.sum() > 1:
            clusters.append(items[cluster])
    return sorted(clusters, key=len, reverse=True)


def _solve(answer: Rows, clusters: Sequence[Tensor], found: Tensor) -> None:
    """Mark in `found` [n_people, n_items] who has which of an answer's items."""
    known, basis = _directions(answer, clusters)
    if known:
        shares = nonnegative(torch.nn.functional.normalize(answer.table, dim=1), basis)
        found[torch.tensor(known)[:, None], answer.items] += (shares > LEAST).T.float()


def _directions(answer: Rows, clusters: Sequence[Tensor]) -> tuple[list[int], Tensor]:
    """Which clusters have rows in an answer, and their unit directions there [n, width]."""
    unit = torch.nn.functional.normalize(answer.table, dim=1)
    own = [(number, torch.isin(answer.items, cluster)) for number, cluster in enumerate(clusters)]
    there = [(number, unit[rows].mean(0)) for number, rows in own if rows.any()]
    basis = torch.stack([direction for _, direction in there]) if there else unit[:0]
    return [number for number, _ in there], torch.nn.functional.normalize(basis, dim=1)


def _extreme(answer: Rows, clusters: list[Tensor]) -> list[Tensor]:
    """The clusters whose direction is no sum of others' in an answer, and those that it does not hold; all where there are more
    than it has columns."""
    known, basis = _directions(answer, clusters)
    if len(known) > answer.table.shape[1] or len(known) < 2:
        return clusters
    dropped = set()
    for at, number in enumerate(known):
        others = torch.cat([basis[:at], basis[at + 1 :]])
        left = basis[at : at + 1] - nonnegative(basis[at : at + 1], others) @ others
        if float(left.norm()) < LEAST:
            dropped.add(number)
    return [cluster for number, cluster in enumerate(clusters) if number not in dropped]


def nonnegative(rows: Tensor, basis: Tensor) -> Tensor:
    """Numbers [n, n_people], none negative, by which the basis [n_people, width] comes nearest to the rows [n, width].

    Projected gradient descent with momentum (Beck & Teboulle 2009).
    """
    gram, target = basis @ basis.T, rows @ basis.T
    rate = 1 / float(torch.linalg.eigvalsh(gram)[-1])
    now = ahead = torch.zeros_like(target)
    weight = 1.0
    for _ in range(STEPS):
        then = (ahead - rate * (ahead @ gram - target)).clamp(min=0)
        heavier = (1 + (1 + 4 * weight**2) ** 0.5) / 2
        ahead = then + (weight - 1) / heavier * (then - now)
        now, weight = then, heavier
    return now
