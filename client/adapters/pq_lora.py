"""PQ-LoRA as a variant of PEFT's LoRA, and the gate between a person's own branch and the federation's.

    h_out = W h + (1 - sigmoid(beta)) local(h) + sigmoid(beta) global(h)     FedMosaic Eq. 7
    branch(h) = s B (P (A h + offset) + Q), s = alpha / rank                 Eq. 5, in the layers that `places` names
    branch(h) = s B A h                                                      plain LoRA, in all others
    branch(h) = s (B' A' h + B (P (A h + offset) + Q))                       where `union` puts both into a place

A, the offset and B of a PQ-LoRA are frozen, P [rank, rank] and Q [rank] are what is learnt and shared; both start at zero,
so the start is the base model exactly, and B is not zero, so P and Q have gradients at once. `beta` starts at zero unless
told otherwise, is learnt, and counts only while both branches are active; with an additive gate the local branch counts in
full. Union and the additive gate are not the paper's. PEFT's hooks used here are private: its version is pinned.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.layer import Linear, LoraLayer, LoraVariant
from torch import Tensor, nn
from torch.nn.functional import linear

from tessera.client.adapters.fused_linear import Branch, fits, fused
from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.projections import Projections, random_projections
from tessera.common.utils import counter_rng

LOCAL, GLOBAL = "local", "global"
FILE_TYPE = "PQ_LORA"
"""What a saved adapter calls itself, so that PEFT alone refuses it: read as LoRA, it would answer without P and Q."""


@dataclass
class PQLoraConfig(LoraConfig):  # type: ignore[misc]
    """LoRA on `target_modules`, PQ-LoRA on those of them in `places`.

    `places` maps a module's name to the name that the corresponding modules of other towers share, see `placement`. `seed`
    draws the start of the frozen matrices; by name, so that all clients and both branches start alike. `union` puts plain LoRA
    beside P and Q; gates are as `tessera.common.registry.methods.PQSettings` says.
    """

    places: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    union: bool = False
    gate: Literal["convex", "additive"] = "convex"
    gate_start: float = 0.0
    gate_per: Literal["linear", "layer"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._register_custom_module({nn.Linear: GatedLinear})

    def to_dict(self) -> dict[str, Any]:
        """The settings as they are saved."""
        return {**super().to_dict(), "peft_type": FILE_TYPE}

    @classmethod
    def from_peft_type(cls, **settings: Any) -> "PQLoraConfig":
        """The config that was saved. PEFT's own method would make a plain `LoraConfig` and drop what that lacks."""
        if settings.pop("peft_type", FILE_TYPE) != FILE_TYPE:
            raise ValueError("this adapter was not saved as PQ-LoRA: read it with peft.PeftModel")
        return cls(**settings)


class GatedLora(LoraVariant):  # type: ignore[misc]
    """Plain LoRA as one branch of the gate."""

    def supports_lora_conversion(self) -> bool:
        """No: the gate would be lost."""
        return False

    def init(self, module: "GatedLinear", adapter_name: str, config: PQLoraConfig, target_name: str, **_: Any) -> None:
        """Draw A by the module's name, zero B, and give the local branch its gate."""
        with torch.no_grad():
            module.lora_A[adapter_name].weight.copy_(module.drawn(config, target_name).a)
            module.lora_B[adapter_name].weight.zero_()
        module.add_gate(adapter_name, config)

    def branch(self, module: "GatedLinear", adapter: str, x: Tensor) -> Tensor:
        """What this branch adds before the gate, [..., d_out]."""
        inner: Tensor = module.lora_A[adapter](x)
        return module.lora_B[adapter](inner) * module.scaling[adapter]  # type: ignore[no-any-return]

    def parts(self, module: "GatedLinear", adapter: str) -> list[Branch]:
        """What `forward` computes with."""
        return [Branch(module.lora_A[adapter].weight, module.lora_B[adapter].weight, module.scaled_share(adapter))]

    def change(self, module: "GatedLinear", adapter: str) -> tuple[Tensor, Tensor | None]:
        """The same as a change of the weight, [d_out, d_in], and of the bias, [d_out]."""
        return module.lora_B[adapter].weight @ module.lora_A[adapter].weight * module.scaling[adapter], None

    def forward(self, module: "GatedLinear", active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """Add the gated branch to `result`."""
        branch = self.branch(module, active_adapter, module.lora_dropout[active_adapter](x))
        return result + module.share(active_adapter) * branch

    @torch.no_grad()
    def merge_safe(self, module: "GatedLinear", active_adapter: str, orig_weight: Tensor) -> Tensor:
        """The base weight with the gated branch in it; the bias is moved in place. Raises `ValueError` unless finite."""
        share = module.share(active_adapter)
        weight, bias = self.change(module, active_adapter)
        if not all(bool(part.isfinite().all()) for part in (weight, bias, share) if part is not None):
            raise ValueError(f"adapter {active_adapter!r} is not finite: it was not merged")
        module._cache_store(f"{active_adapter}-share", share)
        module.move_bias(None if bias is None else share * bias)
        return orig_weight + (share * weight).to(orig_weight.dtype)

    def merge_unsafe(self, module: "GatedLinear", active_adapter: str, orig_weight: Tensor) -> None:
        """As `merge_safe`, in place."""
        orig_weight.data = self.merge_safe(module, active_adapter, orig_weight.data)

    @torch.no_grad()
    def unmerge(self, module: "GatedLinear", active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Take out what `merge` put in, with the gate as it was then."""
        share = module._cache_pop(f"{active_adapter}-share")
        weight, bias = self.change(module, active_adapter)
        module.move_bias(None if bias is None else -share * bias)
        module.drop_made_bias()
        bare: Tensor = orig_weight.data - (share * weight).to(orig_weight.dtype)
        return bare


class FrozenA(nn.Module):
    """A of a PQ-LoRA, kept as [rank, d_in, 1] so that no plain LoRA can load it: PEFT drops P and Q without a word."""

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty_like(like)[..., None], requires_grad=False)

    @property
    def matrix(self) -> Tensor:
        """A, [rank, d_in]."""
        return self.weight[..., 0]

    def forward(self, x: Tensor) -> Tensor:
        """A x, [..., rank]."""
        return linear(x, self.matrix)


class GatedPQLora(GatedLora):
    """PQ-LoRA as one branch of the gate."""

    def init(self, module: "GatedLinear", adapter_name: str, config: PQLoraConfig, target_name: str, **_: Any) -> None:
        """Draw the frozen A and B, zero P and Q."""
        like = module.lora_A[adapter_name].weight
        pq = nn.Linear(config.r, config.r, device=like.device, dtype=like.dtype)
        nn.init.zeros_(pq.weight)
        nn.init.zeros_(pq.bias)
        module.lora_PQ[adapter_name] = pq
        module.lora_A[adapter_name] = FrozenA(like)
        module.lora_offset[adapter_name] = nn.Parameter(like.new_zeros(config.r))
        module.set_projections(adapter_name, module.drawn(config, target_name))
        module.add_gate(adapter_name, config)
        if config.union:
            self._add_plain(module, adapter_name, config, target_name)
        # PEFT keeps these frozen whenever it makes the adapter trainable. The dict is the class's own until replaced.
        frozen = ("lora_A", "lora_B", "lora_offset")
        module.frozen_peft_weight_names = {**module.frozen_peft_weight_names, adapter_name: frozen}

    def branch(self, module: "GatedLinear", adapter: str, x: Tensor) -> Tensor:
        """What this branch adds before the gate, [..., d_out]."""
        inner: Tensor = module.lora_PQ[adapter](module.lora_A[adapter](x) + module.lora_offset[adapter])
        outer: Tensor = module.lora_B[adapter](inner)
        if adapter in module.lora_plain_A:
            outer = outer + module.lora_plain_B[adapter](module.lora_plain_A[adapter](x))
        return outer * module.scaling[adapter]  # type: ignore[no-any-return]

    def parts(self, module: "GatedLinear", adapter: str) -> list[Branch]:
        """What `forward` computes with."""
        a, b, pq = module.lora_A[adapter].matrix, module.lora_B[adapter].weight, module.lora_PQ[adapter]
        share = module.scaled_share(adapter)
        found = [Branch(a, b, share, module.lora_offset[adapter], pq.weight, pq.bias)]  # type: ignore[arg-type]
        if adapter in module.lora_plain_A:
            found += [Branch(module.lora_plain_A[adapter].weight, module.lora_plain_B[adapter].weight, share)]  # type: ignore[arg-type]
        return found

    def change(self, module: "GatedLinear", adapter: str) -> tuple[Tensor, Tensor | None]:
        """The same as a change of the weight, [d_out, d_in], and of the bias, [d_out]."""
        a, b, pq = module.lora_A[adapter].matrix, module.lora_B[adapter].weight, module.lora_PQ[adapter]
        scaling, weight = module.scaling[adapter], b @ pq.weight @ a
        if adapter in module.lora_plain_A:
            plain = (module.lora_plain_A[adapter].weight, module.lora_plain_B[adapter].weight)
            weight = weight + plain[1] @ plain[0]  # type: ignore[operator]
        return weight * scaling, b @ pq(module.lora_offset[adapter]) * scaling

    def _add_plain(self, module: "GatedLinear", adapter: str, config: PQLoraConfig, target_name: str) -> None:
        """Put plain LoRA beside P and Q: A drawn by the module's name as another layer's would be, B zero."""
        like = module.base_layer.weight
        plain = [
            nn.Linear(d_in, d_out, bias=False, device=like.device, dtype=like.dtype)
            for d_in, d_out in ((module.in_features, config.r), (config.r, module.out_features))
        ]
        with torch.no_grad():
            plain[0].weight.copy_(module.drawn(config, f"{target_name} plain").a)
            plain[1].weight.zero_()
        module.lora_plain_A[adapter], module.lora_plain_B[adapter] = plain


class GatedLinear(Linear):  # type: ignore[misc]
    """A linear layer with a local and a global branch, each LoRA or PQ-LoRA, and their gate."""

    adapter_layer_names = (
        *LoraLayer.adapter_layer_names,
        "lora_PQ",
        "lora_offset",
        "lora_gate",
        "lora_plain_A",
        "lora_plain_B",
    )
    place: str | None
    additive: bool = False
    given_shares: Mapping[str, Tensor] | None = None
    """How much each branch counts where a method does not learn it; see `weigh`."""
    lora_PQ: nn.ModuleDict
    lora_offset: nn.ParameterDict
    lora_gate: nn.ParameterDict
    lora_plain_A: nn.ModuleDict
    lora_plain_B: nn.ModuleDict

    def update_layer(self, adapter_name: str, r: int, lora_alpha: int, config: PQLoraConfig, **kwargs: Any) -> None:
        """Add a branch. Raises `ConfigError` for any but the local and the global one, which the gate would not know.

        PEFT calls this from its constructor, before a subclass could make its own containers.
        """
        if adapter_name not in (LOCAL, GLOBAL):
            raise ConfigError(f"a PQ-LoRA branch is called {LOCAL!r} or {GLOBAL!r}, not {adapter_name!r}")
        if not hasattr(self, "lora_PQ"):
            self.lora_PQ, self.lora_offset, self.lora_gate = nn.ModuleDict(), nn.ParameterDict(), nn.ParameterDict()
            self.lora_plain_A, self.lora_plain_B = nn.ModuleDict(), nn.ModuleDict()
            self.bias_is_made = False
        self.place = config.places.get(kwargs["target_name"])
        super().update_layer(adapter_name, r, lora_alpha, config, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer with its active branches, [..., d_out] of [..., d_in]: PEFT's way, or in one operation."""
        if not (self.disable_adapters or self.merged or kwargs):
            branches = [part for one in self.active_adapters for part in self.lora_variant[one].parts(self, one)]
            if branches and fits(self.base_layer, x):
                return fused(self.base_layer, x, branches)
        plain: Tensor = super().forward(x, *args, **kwargs)
        return plain

    def resolve_lora_variant(self, *, config: PQLoraConfig, **_: Any) -> LoraVariant:
        """PQ-LoRA where this layer has a place, otherwise LoRA."""
        return GatedLora() if self.place is None else GatedPQLora()

    def drawn(self, config: PQLoraConfig, target_name: str) -> Projections:
        """The start of the frozen matrices: by seed and name, the same for both branches and on all devices."""
        salt = counter_rng.key("adapter", config.seed, target_name)
        return random_projections(salt, self.in_features, self.out_features, config.r)

    def add_gate(self, adapter: str, config: PQLoraConfig) -> None:
        """Give the layer its beta, which belongs to the local branch: it is trained, saved and kept private with it."""
        self.additive = config.gate == "additive"
        if adapter == LOCAL:
            self.lora_gate[LOCAL] = nn.Parameter(torch.full((), config.gate_start, device=self.weight.device))

    def share(self, adapter: str) -> Tensor:
        """How much a branch counts, a scalar (Eq. 7) unless given otherwise; one alone counts in full."""
        if not {LOCAL, GLOBAL} <= set(self.active_adapters):
            return torch.ones((), device=self.weight.device)
        if self.given_shares is not None:
            return self.given_shares[adapter]
        if self.additive and adapter == LOCAL:
            return torch.ones((), device=self.weight.device)
        beta = self.lora_gate[LOCAL]
        return torch.sigmoid(beta if adapter == GLOBAL else -beta)

    def scaled_share(self, adapter: str) -> Tensor:
        """The share and the scaling s in one."""
        share, scaling = self.share(adapter), self.scaling[adapter]
        return share if scaling == 1 else share * scaling

    @torch.no_grad()
    def set_projections(self, adapter: str, given: Projections) -> None:
        """Replace the frozen matrices of a PQ-LoRA. Raises `DataError` when a shape does not fit."""
        own = (self.lora_A[adapter].matrix, self.lora_B[adapter].weight, self.lora_offset[adapter])
        new = (given.a, given.b, given.offset)
        if [part.shape for part in own] != [part.shape for part in new]:
            shapes = [tuple(part.shape) for part in own], [tuple(part.shape) for part in new]
            raise DataError(f"projections for {self.place!r} must have the shapes {shapes[0]}, not {shapes[1]}")
        for mine, theirs in zip(own, new, strict=True):
            mine.copy_(theirs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        """The change of the weight by one branch, before the gate, [d_out, d_in]; PQ-LoRA also moves the bias."""
        change: Tensor = self.lora_variant[adapter].change(self, adapter)[0]
        return change

    def move_bias(self, change: Tensor | None) -> None:
        """Add to the base's bias, which Q needs even where the base has none."""
        if change is None:
            return
        base = self.get_base_layer()
        if base.bias is None:
            base.bias = nn.Parameter(base.weight.new_zeros(self.out_features), requires_grad=False)
            self.bias_is_made = True
        base.bias.data += change.to(base.bias.dtype)

    def drop_made_bias(self) -> None:
        """Leave the base without a bias again once nothing is merged into it."""
        if self.bias_is_made and not self.merged_adapters:
            self.get_base_layer().bias, self.bias_is_made = None, False


def is_plain(name: str) -> bool:
    """Whether a parameter, by its name in the model, is A or B of plain LoRA, also of that beside P and Q."""
    return any(f".lora_{part}." in name for part in ("A", "B", "plain_A", "plain_B"))


def weigh(model: nn.Module, shares: Mapping[str, Tensor] | None) -> None:
    """Let both branches count as given, not as the gates say: scalars, or [n, 1, 1] for inputs [n, length, d_in].

    None brings the gates back. With a share for each input, branches cannot be merged into the weights.
    """
    for module in model.modules():
        if isinstance(module, GatedLinear):
            module.given_shares = shares


# With this module imported, PEFT's loaders find the right config by themselves.
PEFT_TYPE_TO_CONFIG_MAPPING[FILE_TYPE] = PQLoraConfig
