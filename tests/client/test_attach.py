"""Where adapters sit, on towers of every kind: our own, open_clip's and Hugging Face decoders."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tessera.client.adapters.attach import activate, attach, pq_tensors, receive
from tessera.client.adapters.pq_lora import GLOBAL, LOCAL
from tessera.common.errors import ConfigError
from tessera.common.towers.adapter_placement import block_ends, placement
from tessera.common.towers.attention import split_attention
from tessera.common.towers.transformer import SIZES, ImageTower, TextTower, words

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class FusedBlock(nn.Module):
    """An open_clip residual block: attention that is fused, called as open_clip calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(32, 2, batch_first=True)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(x)


def run_on(example: Tensor) -> Callable[[nn.Module], Tensor]:
    def probe(model: nn.Module) -> Tensor:
        output = model(example)
        return output if isinstance(output, Tensor) else output.logits

    return probe


@pytest.mark.parametrize(
    ("n_layers", "n_blocks", "ends"),
    [(8, 4, [2, 4, 6, 8]), (7, 4, [1, 2, 3, 7]), (4, 4, [1, 2, 3, 4]), (22, 4, [5, 10, 15, 22]), (3, 1, [3])],
)
def test_blocks_end_where_equation_6_says(n_layers: int, n_blocks: int, ends: list[int]) -> None:
    assert block_ends(n_layers, n_blocks) == ends


@pytest.mark.parametrize(("n_layers", "n_blocks"), [(3, 4), (0, 1), (4, 0)])
def test_fewer_layers_than_blocks_are_refused(n_layers: int, n_blocks: int) -> None:
    with pytest.raises(ConfigError, match="cannot be cut"):
        block_ends(n_layers, n_blocks)


def test_places_are_the_same_in_towers_of_every_size_and_kind() -> None:
    places = [set(placement(ImageTower(size), {"image": "layers"}, 4)[1].values()) for size in SIZES.values()]
    assert places[0] == places[1] == places[2]
    assert len(places[0]) == 4 * 4  # q and k share nothing
    assert "image.3.attn.out_proj" in places[0]
    fused = nn.Sequential(*[FusedBlock() for _ in range(4)])
    split_attention(fused)
    assert {f"image.{block}.attn.{name}_proj" for block in range(4) for name in ("v", "out")} <= set(
        placement(nn.ModuleDict({"resblocks": fused}), {"image": "resblocks"}, 4)[1].values()
    )


def test_pq_lora_sits_on_the_last_layer_of_each_block_and_lora_on_the_others() -> None:
    targets, places = placement(TextTower(SIZES["small"]), {"text": "layers"}, 4)
    assert {name.split(".")[1] for name in places} == {"1", "3", "5", "7"}
    assert {name.split(".")[1] for name in targets} == {str(layer) for layer in range(8)}


def test_what_moves_one_tower_moves_another_of_another_size() -> None:
    towers = [
        attach(ImageTower(SIZES[name]).eval(), {"image": "layers"}, 4, run_on(IMAGES)) for name in ("tiny", "small")
    ]
    sent = {name: torch.full_like(value, 0.1) for name, value in pq_tensors(towers[0]).items()}
    for tower in towers:
        own = {name: value for name, value in pq_tensors(tower, GLOBAL).items()}
        assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in sent.items()}
    with pytest.raises(Exception, match="other layers"):
        receive(towers[1], sent)  # a global branch comes whole, with its plain LoRA


def test_a_text_tower_is_adapted_too() -> None:
    tokens = words(["a red vase", "the night train to Lisbon", ""])
    tower = TextTower(SIZES["tiny"]).eval()
    before = tower(tokens)
    model = attach(tower, {"text": "layers"}, 4, run_on(tokens))
    assert torch.equal(model(tokens), before)


def test_targets_without_a_gradient_are_refused_until_their_attention_is_split() -> None:
    x = torch.randn(2, 5, 32)
    model = nn.ModuleDict({"resblocks": nn.Sequential(*[FusedBlock() for _ in range(2)])})
    probe: Callable[[nn.Module], Tensor] = lambda m: m.get_submodule("resblocks")(x)  # noqa: E731
    with pytest.raises(ConfigError, match=r"no effect on 2 layers, such as 'resblocks.0.attn.out_proj'"):
        attach(model, {"image": "resblocks"}, 4, lambda m: probe(m.get_base_model()), n_blocks=2)

    model = nn.ModuleDict({"resblocks": nn.Sequential(*[FusedBlock() for _ in range(2)])})
    assert split_attention(model) == 2
    adapted = attach(model, {"image": "resblocks"}, 4, lambda m: probe(m.get_base_model()), n_blocks=2)
    assert len(pq_tensors(adapted)) == 2 * 2 * 3


def test_what_cannot_be_adapted_is_refused() -> None:
    tower = ImageTower(SIZES["tiny"])
    with pytest.raises(ConfigError, match="no layers 'blocks'"):
        attach(tower, {"image": "blocks"}, 4, run_on(IMAGES))
    with pytest.raises(ConfigError, match="4 layers cannot be cut into 5 blocks"):
        attach(tower, {"image": "layers"}, 4, run_on(IMAGES), n_blocks=5)
    with pytest.raises(ConfigError, match=r"rank 65 does not fit 'layers.0.attn.q_proj'"):
        attach(tower, {"image": "layers"}, 65, run_on(IMAGES))


SHAPE = {"vocab_size": 50, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("model", "config"), [(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)], ids=["llama", "qwen2"]
)
def test_decoders_of_hugging_face_are_towers_too(model: type[nn.Module], config: type) -> None:
    torch.manual_seed(0)
    shape = config(**SHAPE, hidden_size=32, num_hidden_layers=5)
    tokens = torch.randint(0, 50, (2, 7))
    decoder = model(shape).eval()
    before = decoder(tokens).logits
    adapted = attach(decoder, {"text": "model.layers"}, 4, run_on(tokens), n_blocks=2)
    assert torch.equal(adapted(tokens).logits, before)

    places = {name.rpartition(".")[0] for name in pq_tensors(adapted)}
    linears = ("attn.v_proj", "attn.out_proj", "mlp.gate", "mlp.c_fc", "mlp.c_proj")  # by role, as in other families
    assert places == {f"text.{block}.{name}" for block in range(2) for name in linears}

    for value in pq_tensors(adapted).values():
        value += 0.05
    changed = adapted(tokens).logits
    assert not torch.allclose(changed, before, atol=1e-3)
    adapted.merge_adapter()
    torch.testing.assert_close(adapted(tokens).logits, changed, rtol=0, atol=1e-5)
    adapted.unmerge_adapter()
    activate(adapted, [LOCAL])
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(tokens).logits, before, rtol=0, atol=1e-5)
