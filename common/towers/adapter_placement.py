"""Says which layers of towers of different depth correspond, and so share P and Q (FedMosaic Eq. 6)."""

from collections.abc import Collection, Mapping

from torch import nn

from tessera.common.errors import ConfigError

NOT_SHARED = ("q_proj", "k_proj")
"""Layers that share nothing: what queries and keys write means something inside their own attention only. Measured between
towers derived from one, gradients of the answer by these outputs agree to .15 to .25, by all others to .6 to .98."""
ROLES = {
    "attention.output.dense": "attn.out_proj",
    "query": "attn.q_proj",
    "q_lin": "attn.q_proj",
    "self_attn.q_proj": "attn.q_proj",
    "key": "attn.k_proj",
    "k_lin": "attn.k_proj",
    "self_attn.k_proj": "attn.k_proj",
    "value": "attn.v_proj",
    "v_lin": "attn.v_proj",
    "self_attn.v_proj": "attn.v_proj",
    "o_proj": "attn.out_proj",
    "out_lin": "attn.out_proj",
    "self_attn.out_proj": "attn.out_proj",
    "up_proj": "mlp.c_fc",
    "intermediate.dense": "mlp.c_fc",
    "fc1": "mlp.c_fc",
    "lin1": "mlp.c_fc",
    "down_proj": "mlp.c_proj",
    "output.dense": "mlp.c_proj",
    "fc2": "mlp.c_proj",
    "lin2": "mlp.c_proj",
    "gate_proj": "mlp.gate",
}
"""What model families call the linear layers of a block, by the end of the name, and what these are called here."""


def role(name: str) -> str:
    """What a linear layer does in its block, such as "attn.v_proj", by its name within the block; the name where unknown."""
    return next((known for end, known in ROLES.items() if name == end or name.endswith(f".{end}")), name)


def block_ends(n_layers: int, n_blocks: int) -> list[int]:
    """The last layer of each block, counted from 1: where PQ-LoRA sits (FedMosaic Eq. 6).

    Depths that blocks do not divide leave the rest to the last block: 7 layers in 4 blocks end at 1, 2, 3, 7. Raises
    `ConfigError` when there are fewer layers than blocks, where Eq. 6 would name layer 0.
    """
    if not 1 <= n_blocks <= n_layers:
        raise ConfigError(f"{n_layers} layers cannot be cut into {n_blocks} blocks: take at most as many as layers")
    return [block * (n_layers // n_blocks) for block in range(1, n_blocks)] + [n_layers]


def placement(
    model: nn.Module,
    stacks: Mapping[str, str],
    n_blocks: int,
    queries_and_keys: bool = False,
    shared: Collection[str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """All linear layers in the stacks, and of these the ones that carry PQ-LoRA with the places they share.

    `stacks` maps what a stack encodes to the name of its list of layers, such as {"image": "visual.transformer.resblocks"}.
    A place is stack, block and role within the layer, such as "image.2.attn.v_proj": the same in models of any size and family.
    Queries and keys have one only where `queries_and_keys` says so, as in the paper. Only places among the `shared` carry
    PQ-LoRA where these are given: families differ in what they have. Raises `ConfigError` when a stack is missing, empty of
    linear layers or too shallow, or has no shared place.
    """
    targets: list[str] = []
    places: dict[str, str] = {}
    for stack, path in stacks.items():
        try:
            layers = dict(model.get_submodule(path).named_children())
        except AttributeError:
            raise ConfigError(f"the model has no layers {path!r} to adapt as {stack!r}") from None
        ends = block_ends(len(layers), n_blocks) if n_blocks else []
        for number, (index, layer) in enumerate(layers.items(), start=1):
            inside = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
            targets += [f"{path}.{index}.{name}" for name in inside]
            if number in ends:
                block = ends.index(number)
                own = {f"{path}.{index}.{name}": f"{stack}.{block}.{role(name)}" for name in inside}
                places |= {
                    name: place
                    for name, place in own.items()
                    if queries_and_keys or place.rpartition(".")[2] not in NOT_SHARED
                }
    if not targets:
        raise ConfigError(f"there are no linear layers in {sorted(stacks.values())}: nothing can be adapted")
    if shared is not None and not set(shared) <= set(places.values()):
        raise ConfigError(
            f"the model has no layer for {min(set(shared) - set(places.values()))!r}, where P and Q are shared"
        )
    if twice := [place for place in places.values() if list(places.values()).count(place) > 1]:
        raise ConfigError(
            f"several layers of the model would share {twice[0]!r}: models of this kind cannot be adapted"
        )
    return targets, {name: place for name, place in places.items() if shared is None or place in shared}
