"""Multi-head attention whose four projections are linear layers of their own, so that an adapter can be put on each.

`nn.MultiheadAttention` keeps q, k and v in one parameter and never calls its `out_proj`: LoRA on it has no effect, and gives
no error.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class SplitAttention(nn.Module):
    """Multi-head attention with `q_proj`, `k_proj`, `v_proj` and `out_proj`."""

    def __init__(self, n_heads: int, projections: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = projections

    @classmethod
    def of(cls, fused: nn.MultiheadAttention) -> "SplitAttention":
        """The same attention with the same weights; outputs differ by rounding. Raises `ValueError` for rare options."""
        if not fused.batch_first or fused.bias_k is not None or fused.add_zero_attn or fused.dropout:
            raise ValueError("only batch-first attention without dropout and without added keys can be split")
        if fused.in_proj_weight is None:
            weights = [fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight]
        else:
            weights = list(fused.in_proj_weight.chunk(3))
        biases = [None] * 3 if fused.in_proj_bias is None else list(fused.in_proj_bias.chunk(3))
        inward = [_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]
        outward = _linear(fused.out_proj.weight, fused.out_proj.bias)
        return cls(fused.num_heads, [*inward, outward]).train(fused.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Attend [n, length, width], called like `nn.MultiheadAttention` and with its masks: True, or -inf, hides.

        The attention weights are not returned. Raises `ValueError` when they are asked for.
        """
        if need_weights:
            raise ValueError("split attention does not return its weights: pass need_weights=False")
        q, k, v = (self._heads(part) for part in (self.q_proj(query), self.k_proj(key), self.v_proj(value)))
        if attn_mask is not None:
            attn_mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask
            # [n * heads, ...] as nn.MultiheadAttention wants it; a mask of two dimensions holds for all.
            attn_mask = attn_mask.view(-1, self.n_heads, *attn_mask.shape[1:]) if attn_mask.ndim == 3 else attn_mask
        attended = scaled_dot_product_attention(q, k, v, attn_mask)
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return merged, None

    def _heads(self, projected: Tensor) -> Tensor:
        return projected.view(*projected.shape[:2], self.n_heads, -1).transpose(1, 2)


def split_attention(model: nn.Module) -> int:
    """Replace every `nn.MultiheadAttention` in `model`, in place, and return how many there were.

    Load pretrained weights before: checkpoints hold the fused parameter.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(parent, name, SplitAttention.of(child))
                replaced += 1
    return replaced


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, weight.device, weight.dtype)
    linear.weight.data.copy_(weight.detach())
    if bias is not None:
        linear.bias.data.copy_(bias.detach())
    return linear
