"""Attention split into four linear layers computes what the fused one computes."""

import pytest
import torch
from torch import Tensor, nn

from tessera.common.towers.attention import SplitAttention, split_attention

CAUSAL = torch.full((6, 6), -torch.inf).triu(1)
MASKS = {"none": None, "causal": CAUSAL, "boolean": CAUSAL.isinf(), "per-head": CAUSAL.isinf().repeat(12, 1, 1)}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("sizes", [{}, {"kdim": 24, "vdim": 40}, {"bias": False}], ids=["same", "cross", "no-bias"])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_fused_attention(mask: Tensor | None, sizes: dict[str, int], training: bool) -> None:
    torch.manual_seed(0)
    fused = nn.MultiheadAttention(64, 4, batch_first=True, **sizes).train(training)
    split = SplitAttention.of(fused)
    assert split.training == training
    query, key, value = (torch.randn(3, 6, sizes.get(name, 64)) for name in ("width", "kdim", "vdim"))
    with torch.set_grad_enabled(training):  # without gradients torch takes another path
        expected = fused(query, key, value, need_weights=False, attn_mask=mask)[0]
        output = split(query, key, value, need_weights=False, attn_mask=mask)[0]
    assert (output - expected).abs().max() < 2e-6


def test_every_attention_of_a_model_is_split_in_place() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True)))
    weight = model[1][0].out_proj.weight.detach().clone()
    assert split_attention(model) == 1
    assert isinstance(model[1][0], SplitAttention)
    assert torch.equal(model[1][0].out_proj.weight, weight)
    assert split_attention(model) == 0


def test_options_that_would_change_the_result_are_refused() -> None:
    for options in ({"batch_first": False}, {"dropout": 0.1}, {"add_zero_attn": True}, {"add_bias_kv": True}):
        with pytest.raises(ValueError, match="can be split"):
            SplitAttention.of(nn.MultiheadAttention(8, 2, **{"batch_first": True, **options}))
    x = torch.randn(1, 2, 8)
    with pytest.raises(ValueError, match="need_weights"):
        SplitAttention.of(nn.MultiheadAttention(8, 2, batch_first=True))(x, x, x, need_weights=True)


def test_a_tower_of_open_clip_gives_the_same_after_the_split() -> None:
    import open_clip

    torch.manual_seed(0)
    size = {"layers": 2, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 2, "layers": 2}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=size, text_cfg=text).eval()
    images, tokens = torch.rand(2, 3, 32, 32), torch.randint(1, 50, (2, 8))
    with torch.no_grad():
        before = model.encode_image(images), model.encode_text(tokens)
        assert split_attention(model) == 4
        after = model.encode_image(images), model.encode_text(tokens)
    for old, new in zip(before, after, strict=True):
        assert (old - new).abs().max() < 2e-6
