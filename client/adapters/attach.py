"""Putting adapters on a tower, taking out what may leave the device, and putting in what the server sends.

What leaves is P and Q of the places, and plain LoRA for devices with the same tower. The gate never does.
"""

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import CONFIG_NAME, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from tessera.client.adapters.pq_lora import FILE_TYPE, GLOBAL, LOCAL, GatedLinear, PQLoraConfig
from tessera.common.errors import ConfigError, DataError
from tessera.common.registry.methods import PQSettings, Shared
from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.projections import Projections
from tessera.common.utils import counter_rng
from tessera.common.utils.atomic_files import PRIVATE, read_json, read_tensors, write_json, write_tensors

WEIGHTS_NAME = "adapter_model.safetensors"
PLAIN = PQSettings(name="pq", union=False)
"""One kind of adapter in a layer, and a gate in each."""


def attach(
    model: nn.Module,
    stacks: Mapping[str, str],
    rank: int,
    probe: Callable[[nn.Module], Tensor],
    n_blocks: int = 4,
    seed: int = 0,
    form: PQSettings = PLAIN,
    shared: Collection[str] | None = None,
) -> PeftModel:
    """Freeze `model` and give it local and global branches; its output stays what it was.

    With 0 blocks all layers get plain LoRA; `form` says what else branches and gates are made of. `probe` runs the model on an
    example; `shared` are the places that all models of the federation have, where they are not all alike. Raises `ConfigError`
    when a layer is too small for `rank`, or gets no gradient, so that its adapter would stay without effect.
    """
    targets, places = placement(model, stacks, n_blocks, form.queries_and_keys, shared)
    for name in targets:
        shape = tuple(model.get_parameter(f"{name}.weight").shape)
        if not 1 <= rank <= min(shape):
            raise ConfigError(f"rank {rank} does not fit {name!r}, whose weight is {shape}")
    gates: dict[str, Any] = {name: getattr(form, name) for name in ("gate_start", "gate_per")}
    gates["gate"] = (
        "additive" if form.gate == "additive" else "convex"
    )  # where branches are never mixed it does not count
    config = PQLoraConfig(
        r=rank, lora_alpha=rank, target_modules=targets, places=places, seed=seed, union=form.union, **gates
    )
    adapted = _with_branches(model, config)
    _refuse_dead(adapted, probe)
    return adapted


def activate(model: PeftModel, branches: Sequence[str] = (LOCAL, GLOBAL), trained: Sequence[str] = (LOCAL,)) -> None:
    """Choose the branches that count, and which are trained: not the global one, where a method does not say so."""
    model.base_model.set_adapter(list(branches))
    for branch in (LOCAL, GLOBAL):
        if branch in model.peft_config:
            model.set_requires_grad(branch, requires_grad=branch in trained)


def pq_tensors(model: PeftModel, branch: str = LOCAL) -> dict[str, Tensor]:
    """P [rank, rank] and Q [rank] by place: what devices of all classes share. The tensors are the model's own."""
    tensors = {}
    for place, layer in _placed(model).items():
        tensors[f"{place}.P"] = layer.get_parameter(f"lora_PQ.{branch}.weight").data
        tensors[f"{place}.Q"] = layer.get_parameter(f"lora_PQ.{branch}.bias").data
    return tensors


def lora_tensors(model: PeftModel, branch: str = LOCAL) -> dict[str, Tensor]:
    """A [rank, d_in] and B [d_out, rank] of plain LoRA, also of that beside P and Q: shared within a device class only."""
    tensors = {}
    for name, layer in _layers(model):
        if layer.place is None or branch in layer.lora_plain_A:
            kind = "lora_" if layer.place is None else "lora_plain_"
            tensors[f"{name}.A"] = layer.get_parameter(f"{kind}A.{branch}.weight").data
            tensors[f"{name}.B"] = layer.get_parameter(f"{kind}B.{branch}.weight").data
    return tensors


def branch_tensors(
    model: PeftModel, branch: str, share: Shared = "pq+class"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What may leave the device of a branch: P and Q by place and, unless `share` is "pq", plain LoRA by layer.

    The tensors are the model's own.
    """
    return pq_tensors(model, branch), {} if share == "pq" else lora_tensors(model, branch)


def gates(model: PeftModel) -> dict[str, Tensor]:
    """Every layer's beta, by name: private. The tensors are the model's own."""
    return {f"gate/{name}": layer.get_parameter(f"lora_gate.{LOCAL}").data for name, layer in _layers(model)}


def receive(model: PeftModel, sent: Mapping[str, Tensor], branch: str = GLOBAL, share: Shared = "pq+class") -> None:
    """Put what was merged of all that is shared into a branch: all or nothing. Raises `DataError` unless names and shapes
    fit."""
    pq, lora = branch_tensors(model, branch, share)
    own = pq | lora
    if any(layer.merged for _, layer in _layers(model)):
        raise DataError("adapters cannot change while they are merged into the model: unmerge them first")
    if own.keys() != sent.keys():
        raise DataError(f"adapters sent for other layers than this tower's: {sorted(own.keys() ^ sent.keys())[:4]}")
    for name, value in sent.items():
        if value.shape != own[name].shape or not bool(value.isfinite().all()):
            raise DataError(f"{name!r} was sent with shape {tuple(value.shape)}, or is not finite")
    for name, value in sent.items():
        own[name].copy_(value)


def set_projections(model: PeftModel, aligned: Mapping[str, Projections]) -> None:
    """Give both branches the frozen matrices of their places. Raises `DataError` unless all places are given and fit."""
    placed = _placed(model)
    if placed.keys() != aligned.keys():
        raise DataError("projections must be given for exactly the places of this tower")
    for place, layer in placed.items():
        for branch in (LOCAL, GLOBAL):
            layer.set_projections(branch, aligned[place])


def save(model: PeftModel, folder: Path) -> None:
    """Write both branches and the gate below `folder`, in PEFT's own files, readable by their owner only."""
    for branch in (LOCAL, GLOBAL):
        state = get_peft_model_state_dict(model, adapter_name=branch, save_embedding_layers=False)
        settings = model.peft_config[branch].to_dict()
        plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
        apart = {name: value.clone() for name, value in state.items()}  # layers may share a gate
        write_tensors(folder / branch / WEIGHTS_NAME, apart, mode=PRIVATE)
        write_json(folder / branch / CONFIG_NAME, plain)


def restore(model: nn.Module, folder: Path) -> PeftModel:
    """The adapted model that `save` wrote, from the same bare `model`. Raises `DataError` when it does not fit.

    PEFT's loaders would look for missing files on the network, and only warn about missing tensors.
    """
    settings = read_json(folder / LOCAL / CONFIG_NAME)
    if settings.get("peft_type") != FILE_TYPE:
        raise DataError(f"{folder / LOCAL} holds a {settings.get('peft_type')} adapter, not {FILE_TYPE}")
    adapted = _with_branches(model, PQLoraConfig.from_peft_type(**settings))
    for branch in (LOCAL, GLOBAL):
        tensors, _ = read_tensors(folder / branch / WEIGHTS_NAME)
        wanted = get_peft_model_state_dict(adapted, adapter_name=branch, save_embedding_layers=False)
        if {name: value.shape for name, value in wanted.items()} != {n: v.shape for n, v in tensors.items()}:
            raise DataError(f"{folder / branch / WEIGHTS_NAME} was saved from another tower")
        set_peft_model_state_dict(adapted, tensors, adapter_name=branch)
    return adapted


def _with_branches(model: nn.Module, config: PQLoraConfig) -> PeftModel:
    adapted = PeftModel(model, config, adapter_name=LOCAL)
    adapted.add_adapter(GLOBAL, copy.copy(config))
    if config.gate_per == "layer":
        _tie_gates(adapted)
    activate(adapted)
    return adapted


def _tie_gates(model: PeftModel) -> None:
    """Let all adapted linears in one layer of a stack have the gate of the first of them."""
    gates: dict[str, nn.Parameter] = {}
    for name, layer in _layers(model):
        numbered = re.match(r"(?:.*?\.)?\d+(?=\.)", name)  # as in layers.3.mlp.c_fc
        layer.lora_gate[LOCAL] = gates.setdefault(numbered[0] if numbered else name, layer.lora_gate[LOCAL])


def _refuse_dead(model: PeftModel, probe: Callable[[nn.Module], Tensor]) -> None:
    with torch.enable_grad():
        output = probe(model)
        # Not a plain sum: layer normalisation would make that constant.
        weights = counter_rng.normal(counter_rng.key("probe"), torch.arange(output.numel())).view_as(output)
        (output * weights.to(output)).sum().backward()  # type: ignore[no-untyped-call]
    dead = [name for name, layer in _layers(model) if not any(bool(g.any()) for g in _gradients(layer))]
    model.zero_grad(set_to_none=True)
    if dead:
        raise ConfigError(
            f"adapters would have no effect on {len(dead)} layers, such as {dead[0]!r}: the model does not call them, as "
            "nn.MultiheadAttention does not call its out_proj (see split_attention), or the probe does not reach them"
        )


def _gradients(layer: GatedLinear) -> Iterator[Tensor]:
    trained = layer.lora_B[LOCAL] if layer.place is None else layer.lora_PQ[LOCAL]
    return (parameter.grad for parameter in trained.parameters() if parameter.grad is not None)


def _placed(model: PeftModel) -> dict[str, GatedLinear]:
    return {layer.place: layer for _, layer in _layers(model) if layer.place is not None}


def _layers(model: PeftModel) -> list[tuple[str, GatedLinear]]:
    bare = model.get_base_model()
    return [(name, module) for name, module in bare.named_modules() if isinstance(module, GatedLinear)]
