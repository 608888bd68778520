"""A frozen linear layer and its branches as one operation, with its gradient written out.

Towers of a device's size are small: the number of operations is what costs, and a layer with two branches is some forty of
them to autograd. This way a training step of the `small` tower takes three quarters of the time. What it computes is what
`GatedLora.forward` and the two `branch` say.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Branch(NamedTuple):
    """share * B (P (A x + offset) + Q), or share * B A x where the last three are None.

    `a` [rank, d_in], `b` [d_out, rank], `offset` [rank], `p` [rank, rank], `q` [rank]; `share` is a scalar that has the
    scaling in it, or has a place for each input, [n, 1, 1]. The offset gets no gradient, nor does a share of the latter kind.
    """

    a: Tensor
    b: Tensor
    share: Tensor
    offset: Tensor | None = None
    p: Tensor | None = None
    q: Tensor | None = None


WIDTH = len(Branch._fields)


def fits(base: nn.Module, x: Tensor) -> bool:
    """Whether `base` is a frozen linear layer of `x`'s type that nobody listens to: else it has to be called."""
    return (
        type(base) is nn.Linear
        and not (base.weight.requires_grad or base._forward_hooks or base._forward_pre_hooks)
        and x.dtype == base.weight.dtype
    )


def fused(base: nn.Linear, x: Tensor, branches: Sequence[Branch]) -> Tensor:
    """W x + bias + the sum of the branches, [..., d_out], for x [..., d_in].

    Branches are computed in `x`'s type: a model may be in half precision, what is learnt never is.
    """
    parts = [None if part is None else part.to(x.dtype) for branch in branches for part in _by_row(branch, x)]
    out: Tensor = _Fused.apply(x.flatten(0, -2), base.weight, base.bias, *parts)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def _by_row(branch: Branch, x: Tensor) -> Branch:
    """With a share for each row of the flattened `x` where there is one for each input."""
    if not branch.share.ndim:
        return branch
    return branch._replace(share=branch.share.expand(*x.shape[:-1], 1).reshape(-1, 1))


class _Fused(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *parts: Tensor | None) -> Tensor:
        out = x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())
        saved: list[Tensor | None] = [x, weight]
        for number in range(0, len(parts), WIDTH):
            a, b, share, offset, p, q = Branch(*parts[number : number + WIDTH])  # type: ignore[arg-type]
            inner = x @ a.t() if offset is None else torch.addmm(offset, x, a.t())
            moved = inner if p is None or q is None else torch.addmm(q, inner, p.t())
            out.addmm_(moved * share, b.t())
            saved += [a, b, share, p, inner, moved]
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_out = outputs[0]
        x, weight, *saved = ctx.saved_tensors
        d_x = d_out @ weight if ctx.needs_input_grad[0] else None
        gradients: list[Tensor | None] = [d_x, None, None]
        for number in range(0, len(saved), WIDTH):
            a, b, share, p, inner, moved = saved[number : number + WIDTH]
            needs = Branch(*ctx.needs_input_grad[3 + number : 3 + number + WIDTH])
            d_shared = d_out @ b
            d_moved = d_shared * share
            d_inner = d_moved if p is None else d_moved @ p
            if d_x is not None:
                d_x.addmm_(d_inner, a)
            gradients += [
                d_inner.t() @ x if needs.a else None,
                d_out.t() @ (moved * share) if needs.b else None,
                torch.dot(d_shared.flatten(), moved.flatten()) if needs.share else None,
                None,
                d_moved.t() @ inner if needs.p else None,
                d_moved.sum(0) if needs.q else None,
            ]
        return tuple(gradients)
