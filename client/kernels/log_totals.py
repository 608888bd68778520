"""The logarithm of the sum of exp over all items of scores that are inner products, and its gradients, in one pass.

A catalogue's scores are [n_users, n_items], and a softmax written in tensors makes such a table five times over: scores,
differences, exponentials, gradients, and those again. Here items come in chunks that stay in the processor's cache, and of each
only the exponentials are kept, for the gradient of the items. That of the users' factors is the softmax's mean of the items'
rows, kept up to date while maxima grow, as in Dao et al. (2022, FlashAttention, arXiv 2205.14135, Alg. 1).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK = 2**21
"""Numbers of a chunk's scores."""
KEPT = 2**28
"""Numbers of exponentials that are kept between the passes; beyond them they are computed again."""


@dataclass(frozen=True)
class Chunk:
    """Some items' part: `at` which rows of the table, relative to which maxima [n_users, 1], and exp(scores - maxima)."""

    at: slice
    maxima: Tensor
    powers: Tensor | None


class LogTotals:
    """log sum_i exp(left_u . table_i), [n_users], over items that are not `excluded` [n_items].

    `left` is [n_users, width], `table` [n_items, width]; `means` [n_users, width] is the gradient with respect to `left`.
    """

    def __init__(self, left: Tensor, table: Tensor, excluded: Tensor | None) -> None:
        self.left, self.table, self.excluded = left, table, excluded
        n_users, n_items = len(left), len(table)
        size, self.chunks = max(1, CHUNK // max(1, n_users)), list[Chunk]()
        maxima = left.new_full((n_users, 1), torch.finfo(left.dtype).min)
        sums, weighted = torch.zeros_like(maxima), torch.zeros_like(left)
        for start in range(0, n_items, size):
            at = slice(start, min(start + size, n_items))
            scores = self._scores(at)
            higher = torch.maximum(maxima, scores.amax(1, keepdim=True))
            powers, shrunk = scores.sub_(higher).exp_(), (maxima - higher).exp_()
            maxima = higher
            sums = sums.mul_(shrunk).add_(powers.sum(1, keepdim=True))
            weighted = weighted.mul_(shrunk).addmm_(powers, table[at])
            self.chunks.append(Chunk(at, maxima, powers if n_users * at.stop <= KEPT else None))
        self.values, self.means = (maxima + sums.log())[:, 0], weighted.div_(sums)

    def add_items(self, gradient: Tensor, into: Tensor) -> None:
        """Add the gradients with respect to the table, [n_items, width], of the `gradient` [n_users] at the values."""
        for chunk in self.chunks:
            powers = self._scores(chunk.at).sub_(chunk.maxima).exp_() if chunk.powers is None else chunk.powers
            share = (chunk.maxima[:, 0] - self.values).exp() * gradient
            into[chunk.at].addmm_(powers.T, self.left * share[:, None])

    def attached(self, left: Tensor) -> Tensor:
        """The values as a function of `left`, of which this holds the numbers; the table counts as a constant."""
        values: Tensor = _Attached.apply(left, self.values, self.means)  # type: ignore[no-untyped-call]
        return values

    def _scores(self, at: slice) -> Tensor:
        scores = self.left @ self.table[at].T
        return scores if self.excluded is None else scores.masked_fill_(self.excluded[at], -torch.inf)


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, left: Tensor, values: Tensor, means: Tensor) -> Tensor:
        ctx.save_for_backward(means)
        return values.clone()

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (means,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradients[0][:, None] * means, None, None
