"""Holds each person's gradients of one tensor that was sent, as factors: their norms and their sum need no more.

A person's gradient of the views [n_views, n_items, dim] has millions of numbers, but few degrees of freedom: scores are
inner products, so what one of them says of the views is an outer product. From factors the norm is
|sum_r l_r (x) x_r|^2 = sum_rs (l_r . l_s)(x_r . x_s): ghost norms (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022,
arXiv:2110.05679, section 4), here over all local epochs together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from string import ascii_lowercase

import torch
from torch import Tensor

from tessera.common.protocol.updates import Update


@dataclass(frozen=True)
class Outer:
    """Row r's gradient is left_r along one `axis` of the tensor, times right_r over its other axes.

    `left` is [n_rows, length of the axis], `right` [n_rows, *the other lengths]. Each person has the same number of rows, one
    after the other.
    """

    left: Tensor
    right: Tensor
    axis: int

    def parts(self) -> tuple[Tensor, ...]:
        """What it holds."""
        return self.left, self.right


@dataclass(frozen=True)
class Whole:
    """Row r's gradient written out, [n_rows, *shape]: for tensors that are small."""

    value: Tensor

    def parts(self) -> tuple[Tensor, ...]:
        """What it holds."""
        return (self.value,)


Term = Outer | Whole


@dataclass(frozen=True)
class PersonGradients:
    """The gradients of `n_people` with respect to a tensor of some shape, each the sum of their rows of all `terms`.

    Additive: what a local step adds is another list of terms.
    """

    n_people: int
    shape: torch.Size
    terms: tuple[Term, ...] = ()

    def __add__(self, other: PersonGradients) -> PersonGradients:
        """Add person by person."""
        return replace(self, terms=self.terms + other.terms)

    def squared_norms(self) -> Tensor:
        """Each person's squared Euclidean norm, [n_people] float64: sums of products can cancel."""
        letters, (outers, whole) = ascii_lowercase[: len(self.shape)], self._by_axis()
        total = torch.zeros(self.n_people, dtype=torch.float64)
        if whole is not None:
            total = total.to(whole.device) + whole.double().flatten(1).square().sum(1)
        for axis, (left, right) in outers.items():
            lefts, rights = (part.flatten(2).double() for part in (left, right))
            total = total.to(left.device) + ((lefts @ lefts.mT) * (rights @ rights.mT)).sum((1, 2))
            rest = letters.replace(letters[axis], "")
            if whole is not None:
                met = torch.einsum(f"p{letters},pr{letters[axis]}->pr{rest}", whole, left)
                total += 2 * (met.double() * right).flatten(1).sum(1)
            for other, (other_left, other_right) in outers.items():
                if other > axis:
                    both, others = rest.replace(letters[other], ""), letters.replace(letters[other], "")
                    one = torch.einsum(f"pr{rest},ps{letters[other]}->prs{both}", right, other_left)
                    two = torch.einsum(f"ps{others},pr{letters[axis]}->prs{both}", other_right, left)
                    total += 2 * (one.double() * two).flatten(1).sum(1)
        return total.clamp(min=0)

    def total(self, factors: Tensor) -> Tensor:
        """The sum over people of `factors` [n_people] times their gradients, in the tensor's own shape."""
        outers, whole = self._by_axis()
        if not bool(factors.all()):  # what counts 0 may hold anything
            kept = factors.nonzero()[:, 0]
            outers = {axis: (left[kept], right[kept]) for axis, (left, right) in outers.items()}
            whole, factors = whole if whole is None else whole[kept], factors[kept]
        found = torch.zeros(self.shape, dtype=factors.dtype, device=factors.device)
        if whole is not None:
            found += torch.tensordot(factors, whole, 1)
        for axis, (left, right) in outers.items():
            scaled = (right.flatten(2) * factors[:, None, None]).flatten(0, 1)
            product = left.flatten(0, 1).T @ scaled
            found += product.view(-1, *right.shape[2:]).movedim(0, axis)
        return found

    def _by_axis(self) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor | None]:
        """The outer products of each axis as [n_people, n_rows, ...] of a person's own, and the sum of what is written out."""
        lefts, rights = defaultdict[int, list[Tensor]](list), defaultdict[int, list[Tensor]](list)
        whole: Tensor | None = None
        for term in self.terms:
            if isinstance(term, Whole):
                own = term.value.view(self.n_people, -1, *self.shape).sum(1)
                whole = own if whole is None else whole + own
            else:
                lefts[term.axis].append(term.left.reshape(self.n_people, -1, term.left.shape[-1]))
                rights[term.axis].append(term.right.reshape(self.n_people, -1, *term.right.shape[1:]))
        return {axis: (torch.cat(lefts[axis], 1), torch.cat(rights[axis], 1)) for axis in sorted(lefts)}, whole


@dataclass(frozen=True)
class PersonUpdates:
    """Updates of some people, not yet added up: `rest` is the sum of all in them but these gradients.

    `factors` [n_people] are what each person's gradients count; all 1 at first.
    """

    gradients: Mapping[str, PersonGradients]
    rest: Update
    factors: Tensor

    @classmethod
    def of(cls, update: Update) -> PersonUpdates:
        """One person's update."""
        gradients = {
            name: PersonGradients(1, value.shape, (Whole(value[None]),)) for name, value in update.gradients.items()
        }
        some = next(iter(update.gradients.values()))
        return cls(gradients, replace(update, gradients={}), some.new_ones(1))

    def norms(self) -> Tensor:
        """The Euclidean norm of each person's gradients, all tensors together, [n_people] float64."""
        squares = [gradients.squared_norms() for gradients in self.gradients.values()]
        return torch.stack(squares).sum(0).sqrt() * self.factors.abs()

    def numbers_a_person(self) -> int:
        """How many numbers are held for each person."""
        held = sum(
            part.numel() for gradients in self.gradients.values() for term in gradients.terms for part in term.parts()
        )
        return -(-held // len(self.factors))

    def scaled(self, factors: Tensor) -> PersonUpdates:
        """The same with each person's gradients times a factor of their own."""
        return replace(self, factors=self.factors * factors.to(self.factors))

    def total(self) -> Update:
        """Their sum."""
        gradients = {name: gradient.total(self.factors) for name, gradient in self.gradients.items()}
        return replace(self.rest, gradients={**self.rest.gradients, **gradients})
