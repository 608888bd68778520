"""Layers of a network that all people share: their gradients can be told apart by person."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import linear, one_hot

from tessera.client.per_person.gradients import Outer, Whole
from tessera.client.per_person.meeting import meet
from tessera.common.protocol.tensors import Tensors

Network = Callable[..., Tensor]
"""From shared tensors by name, and tensors of which each person has a row, to one row a person."""


def shared_linear(given: Tensor, weight: Tensor, owners: Tensor | None = None, n_people: int = 0) -> Tensor:
    """`given` [n_people, ..., n_in] times `weight` [n_out, n_in] transposed; a `weight` [n_in] gives [n_people, ...].

    With `owners` [n_pairs], `given` is [n_pairs, n_in], and each row belongs to one of `n_people`.
    """

    def terms(gradient: Tensor) -> list[Whole]:
        gradient, inputs = gradient if weight.ndim > 1 else gradient[..., None], given.detach()
        if owners is None:
            rows, inputs = (part.reshape(len(given), -1, part.shape[-1]) for part in (gradient, inputs))
            found = rows.mT @ inputs
        else:
            found = _outer_by_owner(gradient, inputs, owners, n_people)
        return [Whole(found.reshape(-1, *weight.shape))]

    return meet(lambda weight: linear(given, weight), (weight,), terms)


def shared_bias(given: Tensor, bias: Tensor, owners: Tensor | None = None, n_people: int = 0) -> Tensor:
    """`given` plus `bias` [n_out], with rows as in `shared_linear`."""

    def terms(gradient: Tensor) -> list[Whole]:
        if owners is None:
            return [Whole(gradient.reshape(len(given), -1, gradient.shape[-1]).sum(1))]
        return [Whole(gradient.new_zeros(n_people, gradient.shape[-1]).index_add_(0, owners, gradient))]

    return meet(lambda bias: given + bias, (bias,), terms)


def _outer_by_owner(left: Tensor, right: Tensor, owners: Tensor, n_people: int) -> Tensor:
    """The sum over each person's rows of left_r (x) right_r, [n_people, n_left, n_right]."""
    order = owners.argsort()
    sizes = torch.bincount(owners, minlength=n_people).tolist()
    pairs = zip(torch.split(left[order], sizes), torch.split(right[order], sizes), strict=True)
    return torch.stack([one.T @ other for one, other in pairs])


def shared_rows(table: Tensor, rows: Tensor) -> Tensor:
    """The rows of a shared `table` [n_items, dim] that people's own `rows` [n_people, length] name, [n_people, length, dim]."""

    def terms(gradient: Tensor) -> list[Outer]:
        return [Outer(one_hot(rows.flatten(), len(table)).to(gradient), gradient.flatten(0, 1), axis=0)]

    return meet(lambda table: table[rows], (table,), terms)


def shared_network(network: Network, shared: Tensors, *own: Tensor) -> Tensor:
    """`network(shared, *own)`, [n_people, ...], for a network of which row u depends on row u of people's `own` alone."""
    names = list(shared)

    def compute(*values: Tensor) -> Tensor:
        return network(dict(zip(names, values, strict=True)), *own)

    def terms(gradient: Tensor) -> list[Whole]:
        def of_one(values: Tensors, gradient: Tensor, *rows: Tensor) -> Tensor:
            return (network(values, *(row[None] for row in rows))[0] * gradient).sum()

        constant = {name: value.detach() for name, value in shared.items()}
        dims = (None, 0, *[0] * len(own))
        found = vmap(grad(of_one), in_dims=dims)(constant, gradient, *(row.detach() for row in own))
        return [Whole(found[name]) for name in names]

    return meet(compute, list(shared.values()), terms)
