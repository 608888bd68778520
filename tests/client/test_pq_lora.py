"""PQ-LoRA on our own towers: what one layer computes, what is trained, merged, saved and refused."""

import copy
from functools import partial
from pathlib import Path

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import Tensor, nn

from tessera.client.adapters.attach import (
    PLAIN,
    activate,
    attach,
    lora_tensors,
    pq_tensors,
    receive,
    restore,
    save,
    set_projections,
)
from tessera.client.adapters.pq_lora import FILE_TYPE, GLOBAL, LOCAL, GatedLinear
from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.methods import PQSettings
from tessera.common.towers.projections import random_projections
from tessera.common.towers.transformer import SIZES, ImageTower

RANK = 4
IMAGES = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


class TwoLayers(nn.Module):
    """The smallest model with a stack; its linears have no bias, as those of Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 6, bias=False)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).tanh())


def bare() -> ImageTower:
    torch.manual_seed(0)
    return ImageTower(SIZES["tiny"]).eval()


def adapted(seed: int = 0, form: PQSettings = PLAIN) -> peft.PeftModel:
    return attach(bare(), {"image": "layers"}, RANK, lambda model: model(IMAGES), n_blocks=2, seed=seed, form=form)


UNITED = PQSettings(name="pq", union=True, gate_per="layer", gate_start=-1.0)


def stir(model: nn.Module, scale: float = 0.1) -> None:
    """Move what both branches learn, P and Q or B, and the gate off zero."""
    generator = torch.Generator().manual_seed(1)
    for layer in layers(model):
        for learnt in (layer.lora_PQ if layer.place else layer.lora_B, layer.lora_plain_B, layer.lora_gate):
            for parameter in learnt.parameters():
                parameter.data += scale * torch.randn(parameter.shape, generator=generator)


def layers(model: nn.Module) -> list[GatedLinear]:
    return [module for module in model.modules() if isinstance(module, GatedLinear)]


def trained(model: nn.Module) -> set[str]:
    """Endings, such as 'lora_PQ.local', of the parameters that an optimiser would move."""
    return {".".join(n.split("lora_")[1].split(".")[:2]) for n, p in model.named_parameters() if p.requires_grad}


def test_the_start_is_the_base_model_exactly() -> None:
    assert torch.equal(adapted()(IMAGES), bare()(IMAGES))


def test_a_layer_computes_equations_5_and_7() -> None:
    model = attach(TwoLayers(), {"x": "layers"}, 3, lambda m: m(torch.eye(6)), n_blocks=1)
    stir(model, 1.0)
    plain, pq = layers(model)
    pq.lora_offset[LOCAL].data += torch.randn(3)
    x = torch.randn(5, 6)

    def naive_pq(branch: str) -> Tensor:
        a, b = pq.lora_A[branch].matrix, pq.lora_B[branch].weight
        p, q = pq.lora_PQ[branch].weight, pq.lora_PQ[branch].bias
        return torch.stack([b @ (p @ (a @ row + pq.lora_offset[branch]) + q) for row in x]) * pq.scaling[branch]

    gate = 1 / (1 + torch.exp(-pq.lora_gate[LOCAL]))
    expected = x @ pq.weight.T + (1 - gate) * naive_pq(LOCAL) + gate * naive_pq(GLOBAL)
    torch.testing.assert_close(pq(x), expected, rtol=0, atol=1e-5)

    branches = [plain.lora_B[name].weight @ plain.lora_A[name].weight for name in (LOCAL, GLOBAL)]
    gate = 1 / (1 + torch.exp(-plain.lora_gate[LOCAL]))
    delta = (1 - gate) * branches[0] + gate * branches[1]
    torch.testing.assert_close(plain(x), x @ (plain.weight + delta).T, rtol=0, atol=1e-5)

    activate(model, [GLOBAL])  # one branch alone counts in full
    torch.testing.assert_close(pq(x), x @ pq.weight.T + naive_pq(GLOBAL), rtol=0, atol=1e-5)


def test_a_place_may_carry_plain_lora_beside_p_and_q() -> None:
    model = adapted(form=UNITED)
    assert torch.equal(model(IMAGES), bare()(IMAGES)), "the start is the base model exactly"
    stir(model, 1.0)
    layer = next(layer for layer in layers(model) if layer.place)
    x = torch.randn(5, layer.in_features)

    def naive(branch: str) -> Tensor:
        p, q = layer.lora_PQ[branch].weight, layer.lora_PQ[branch].bias
        shared = [layer.lora_B[branch].weight @ (p @ (layer.lora_A[branch].matrix @ row) + q) for row in x]
        plain = [layer.lora_plain_B[branch].weight @ layer.lora_plain_A[branch].weight @ row for row in x]
        return torch.stack(shared) + torch.stack(plain)

    base = x @ layer.base_layer.weight.T + layer.base_layer.bias
    gate = layer.lora_gate[LOCAL].sigmoid()
    torch.testing.assert_close(layer(x), base + (1 - gate) * naive(LOCAL) + gate * naive(GLOBAL), rtol=1e-4, atol=1e-4)
    layer.additive = True
    torch.testing.assert_close(layer(x), base + naive(LOCAL) + gate * naive(GLOBAL), rtol=1e-4, atol=1e-4)


def test_one_gate_a_layer_is_one_parameter_that_starts_where_told(tmp_path: Path) -> None:
    model = adapted(form=UNITED)
    found = [name for name, _ in model.named_parameters() if "lora_gate" in name]
    assert len(found) == SIZES["tiny"].depth
    assert all(layer.lora_gate[LOCAL] == -1 for layer in layers(model))
    save(model, tmp_path)
    assert len([name for name, _ in restore(bare(), tmp_path).named_parameters() if "lora_gate" in name]) == len(found)
    assert len({layer.lora_gate[LOCAL] for layer in layers(adapted())}) == len(layers(model))


def test_only_the_local_branch_and_the_gate_are_trained_whatever_was_active_before() -> None:
    model = adapted()
    assert trained(model) == {"PQ.local", "A.local", "B.local", "gate.local"}
    activate(model, [GLOBAL])
    activate(model)
    assert trained(model) == {"PQ.local", "A.local", "B.local", "gate.local"}
    for layer in layers(model):
        assert layer.lora_A[LOCAL].weight.requires_grad == (layer.place is None)
        assert layer.lora_gate[LOCAL] == 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stir(model)  # off zero, where the gate's gradient vanishes
    fixed = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.01)
    loss = (model(IMAGES) - 1).square().mean()
    loss.backward()
    optimizer.step()
    assert (model(IMAGES) - 1).square().mean() < loss
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, fixed[name])}
    assert before.keys() == fixed.keys()
    assert {name.split("lora_")[1].split(".")[0] for name in moved} == {"PQ", "A", "B", "gate"}
    assert all(f".{LOCAL}" in name for name in moved)


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("branches", [(LOCAL, GLOBAL), (GLOBAL,)])
def test_merging_changes_no_output_and_unmerging_brings_the_base_back(safe: bool, branches: tuple[str, ...]) -> None:
    united = partial(adapted, form=UNITED)
    for make in (
        adapted,
        united,
        lambda: attach(TwoLayers(), {"x": "layers"}, 3, lambda m: m(torch.eye(6)), n_blocks=2),
    ):
        model = make().eval()
        stir(model)
        x = IMAGES if make in (adapted, united) else torch.randn(5, 6)
        activate(model, branches)
        gated = layers(model)
        bases = [copy.deepcopy(layer.get_base_layer().state_dict()) for layer in gated]
        before = model(x)
        model.merge_adapter(safe_merge=safe)
        assert all(layer.merged for layer in gated)
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-5)
        for layer in gated:
            layer.lora_gate[LOCAL].data += 1  # unmerging takes out what was put in
        model.unmerge_adapter()
        for layer, base in zip(gated, bases, strict=True):
            after = layer.get_base_layer().state_dict()
            assert after.keys() == base.keys()  # no bias is left where there was none
            for name, value in base.items():
                torch.testing.assert_close(after[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("safe", [False, True])
def test_what_is_not_finite_is_not_merged(safe: bool) -> None:
    model = adapted()
    layer = next(layer for layer in layers(model) if layer.place)
    before = copy.deepcopy(layer.get_base_layer().state_dict())
    layer.lora_PQ[LOCAL].bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="'local' is not finite"):
        layer.merge(safe_merge=safe)
    assert all(torch.equal(value, before[name]) for name, value in layer.get_base_layer().state_dict().items())


@pytest.mark.parametrize("form", [PLAIN, UNITED], ids=["plain", "united"])
def test_a_saved_adapter_answers_the_same(tmp_path: Path, form: PQSettings) -> None:
    model = adapted(form=form)
    stir(model)
    save(model, tmp_path)
    again = restore(bare(), tmp_path)
    assert torch.equal(again(IMAGES), model(IMAGES))
    assert trained(again) == trained(model)
    assert (tmp_path / LOCAL / "adapter_model.safetensors").stat().st_mode & 0o077 == 0
    activate(model, [LOCAL])
    by_peft = peft.PeftModel.from_pretrained(bare(), tmp_path / LOCAL, LOCAL).eval()
    torch.testing.assert_close(by_peft(IMAGES), model(IMAGES))


def test_peft_without_this_module_refuses_a_saved_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(adapted(), tmp_path)
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, FILE_TYPE)
    with pytest.raises(KeyError, match=FILE_TYPE):
        peft.PeftModel.from_pretrained(bare(), tmp_path / LOCAL)
    with pytest.raises(KeyError, match=FILE_TYPE):
        peft.LoraConfig.from_pretrained(tmp_path / LOCAL)
    told = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(adapted().peft_config[LOCAL].target_modules))
    with pytest.raises(RuntimeError, match="size mismatch"):
        peft.PeftModel.from_pretrained(bare(), tmp_path / LOCAL, config=told)


def test_no_third_branch_is_made_of_a_and_b_alone() -> None:
    with pytest.raises(ConfigError, match="'local' or 'global', not 'mix'"):
        adapted().base_model.add_weighted_adapter([LOCAL, GLOBAL], [0.5, 0.5], "mix")


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    plain = peft.get_peft_model(bare(), peft.LoraConfig(target_modules=["c_fc"]), adapter_name=LOCAL)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(DataError, match="LORA adapter, not PQ_LORA"):
        restore(bare(), tmp_path / "plain")
    save(adapted(), tmp_path / "tiny")
    with pytest.raises(DataError, match="saved from another tower"):
        restore(ImageTower(SIZES["small"]), tmp_path / "tiny")
    with pytest.raises(DataError, match="does not exist"):
        restore(bare(), tmp_path / "nowhere")


def test_clients_and_branches_start_alike_and_seeds_differ() -> None:
    one, other = adapted(), adapted()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    for layer in layers(one):
        assert torch.equal(layer.lora_A[LOCAL].weight, layer.lora_A[GLOBAL].weight)
        assert torch.equal(layer.lora_B[LOCAL].weight, layer.lora_B[GLOBAL].weight)
    assert not torch.equal(lora_tensors(one)["layers.0.mlp.c_fc.A"], lora_tensors(adapted(1))["layers.0.mlp.c_fc.A"])


def test_projections_go_to_both_branches_and_must_fit() -> None:
    model = adapted()
    layer = next(layer for layer in layers(model) if layer.place == "image.0.mlp.c_fc")
    aligned = {
        one.place: random_projections(5, one.in_features, one.out_features, RANK) for one in layers(model) if one.place
    }
    set_projections(model, aligned)
    for branch in (LOCAL, GLOBAL):
        assert torch.equal(layer.lora_A[branch].matrix, aligned["image.0.mlp.c_fc"].a)
        assert torch.equal(layer.lora_B[branch].weight, aligned["image.0.mlp.c_fc"].b)
    assert torch.equal(model(IMAGES), bare()(IMAGES))
    with pytest.raises(DataError, match=r"'image.0.mlp.c_fc' must have the shapes"):
        set_projections(model, {**aligned, "image.0.mlp.c_fc": random_projections(5, 8, 8, RANK)})
    with pytest.raises(DataError, match="exactly the places"):
        set_projections(model, {"image.0.mlp.c_fc": aligned["image.0.mlp.c_fc"]})


def test_what_was_shared_arrives_in_the_other_devices_global_branch_without_the_gate() -> None:
    sender, receiver = adapted(), adapted()
    stir(sender)
    shared = pq_tensors(sender) | lora_tensors(sender)
    gates = {layer.lora_gate[LOCAL].data_ptr() for layer in layers(sender)}
    assert not gates & {value.data_ptr() for value in shared.values()}
    assert {name.rpartition(".")[2] for name in shared} == {"A", "B", "P", "Q"}
    receive(receiver, shared)
    activate(receiver, [GLOBAL])
    activate(sender, [LOCAL])
    assert torch.equal(receiver(IMAGES), sender(IMAGES))


def test_a_global_branch_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    model = adapted()
    shared = {name: value + 1 for name, value in (pq_tensors(model) | lora_tensors(model)).items()}
    name = "image.1.attn.q_proj.P"
    for broken in (torch.zeros(RANK + 1, RANK + 1), torch.full((RANK, RANK), torch.nan)):
        with pytest.raises(DataError, match=name):
            receive(model, {**shared, name: broken})
    with pytest.raises(DataError, match="other layers"):
        receive(model, pq_tensors(model))
    assert torch.equal(model(IMAGES), bare()(IMAGES))
    model.merge_adapter()
    with pytest.raises(DataError, match="unmerge"):
        receive(model, shared)


def test_pq_lora_sends_r_squared_plus_r_where_lora_sends_r_times_both_widths() -> None:
    model = adapted()
    pq = [layer for layer in layers(model) if layer.place]
    sent = sum(value.numel() for value in pq_tensors(model).values())
    assert sent == len(pq) * (RANK**2 + RANK)
    lora = [layer for layer in layers(model) if not layer.place]
    assert sum(value.numel() for value in lora_tensors(model).values()) == sum(
        RANK * (layer.in_features + layer.out_features) for layer in lora
    )
