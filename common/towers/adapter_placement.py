"""Says which layers of towers of different depth correspond, and so share P and Q (FedMosaic Eq. 6)."""

from collections.abc import Mapping

from torch import nn

from tessera.common.errors import ConfigError

NOT_SHARED = ("q_proj", "k_proj")
"""Layers that share nothing: what queries and keys write means something inside their own attention only. Measured between
towers derived from one, gradients of the answer by these outputs agree to .15 to .25, by all others to .6 to .98."""


def block_ends(n_layers: int, n_blocks: int) -> list[int]:
    """The last layer of each block, counted from 1: where PQ-LoRA sits (FedMosaic Eq. 6).

    Depths that blocks do not divide leave the rest to the last block: 7 layers in 4 blocks end at 1, 2, 3, 7. Raises
    `ConfigError` when there are fewer layers than blocks, where Eq. 6 would name layer 0.
    """
    if not 1 <= n_blocks <= n_layers:
        raise ConfigError(f"{n_layers} layers cannot be cut into {n_blocks} blocks: take at most as many as layers")
    return [block * (n_layers // n_blocks) for block in range(1, n_blocks)] + [n_layers]


def placement(
    model: nn.Module, stacks: Mapping[str, str], n_blocks: int, queries_and_keys: bool = False
) -> tuple[list[str], dict[str, str]]:
    """All linear layers in the stacks, and of these the ones that carry PQ-LoRA with the places they share.

    `stacks` maps what a stack encodes to the name of its list of layers, such as {"image": "visual.transformer.resblocks"}.
    A place is stack, block and the name within the layer, such as "image.2.attn.v_proj": the same in a tower of any size.
    Queries and keys have one only where `queries_and_keys` says so, as in the paper.
    Raises `ConfigError` when a stack is missing, empty of linear layers or too shallow.
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
                shared = [name for name in inside if queries_and_keys or name.rpartition(".")[2] not in NOT_SHARED]
                places |= {f"{path}.{index}.{name}": f"{stack}.{block}.{name}" for name in shared}
    if not targets:
        raise ConfigError(f"there are no linear layers in {sorted(stacks.values())}: nothing can be adapted")
    return targets, places
