"""Layers of a network that all people share: their gradients can be told apart by person."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from tessera.client.per_person.gradients import Whole
from tessera.client.per_person.meeting import meet


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
