"""What holds each user's own table of items against the common one, and its gradient, in few passes over tables."""

from typing import Any

import torch
from torch import Tensor


def size_and_distance(own: Tensor, common: Tensor, size: float, distance: float) -> Tensor:
    """size * mean |common| - distance * mean (x^2 / (1 + x^2)) with x = own - common, [n_users].

    `own` and `common` are [n_users, n_items, dim]; means are over a user's table.
    """
    found: Tensor = _SizeAndDistance.apply(own, common, size, distance)  # type: ignore[no-untyped-call]
    return found


class _SizeAndDistance(torch.autograd.Function):
    """x^2 / (1 + x^2) = 1 - r with r = 1 / (1 + x^2), whose derivative is 2 x r^2: three tables are made, where automatic
    differentiation makes a dozen. Both gradients are computed with the value and kept until they are asked for."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, common: Tensor, size: float, distance: float) -> Tensor:
        n_numbers = own[0].numel()
        apart = own - common
        inverse = torch.square(apart).add_(1).reciprocal_()
        value = distance * (inverse.mean((1, 2)) - 1)
        toward = inverse.square_().mul_(apart).mul_(2 * distance / n_numbers)
        by_common = torch.sign(common, out=apart).mul_(size / n_numbers)
        if size:
            value = value + (by_common * common).sum((1, 2))  # sign(c) c = |c|
        ctx.save_for_backward(toward, by_common.add_(toward))
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        toward, by_common = ctx.saved_tensors
        each = gradient[:, None, None]
        return toward * -each, by_common * each, None, None
