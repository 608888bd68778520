"""The transfer test on whole towers: P and Q learnt on one, plugged into another of other depth and width.

Before any federation this must hold: with aligned A and B the other tower gains, with random ones it does not.
"""

import torch
from peft import PeftModel
from torch import Tensor, nn

from tessera.client.adapters.attach import activate, attach, pq_tensors, set_projections
from tessera.client.adapters.pq_lora import LOCAL, GatedLinear
from tessera.common.config.settings import TOWER_DIM
from tessera.common.towers.projections import Projections
from tessera.common.towers.transformer import TextTower, TowerSize
from tessera.server.pretraining.alignment import ALIGNMENTS, Activations

KINDS, RANK = (6, 5), 12
STACK = {"text": "layers"}


def sentences(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A word of each kind and a filler, in any order, [n, 3]; and which words [n] they were."""
    generator = torch.Generator().manual_seed(seed)
    first, second, filler = (torch.randint(size, (n,), generator=generator) for size in (*KINDS, 20))
    tokens = torch.stack([1 + first, 20 + second, 40 + filler], dim=1)
    return tokens.gather(1, torch.rand(n, 3, generator=generator).argsort(1)), first, second


def meaning(first: Tensor, second: Tensor) -> Tensor:
    """What all towers are distilled to, [n, TOWER_DIM]."""
    generator = torch.Generator().manual_seed(5)
    one, other = (torch.randn(size, TOWER_DIM, generator=generator) for size in KINDS)
    return (one[first] + other[second]) / 2**0.5


def train(model: nn.Module, tokens: Tensor, wanted: Tensor, rate: float, steps: int) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        rows = torch.arange(32 * step, 32 * (step + 1)) % len(tokens)
        optimizer.zero_grad()
        (model(tokens[rows]) - wanted[rows]).square().mean().backward()
        optimizer.step()
        schedule.step()


def tower(size: TowerSize, seed: int) -> PeftModel:
    """A tower with a start of its own, distilled, frozen, and with adapters."""
    torch.manual_seed(seed)
    model = TextTower(size)
    tokens, *kinds = sentences(2000, 0)
    train(model, tokens, meaning(*kinds), rate=3e-3, steps=150)
    return attach(model.eval(), STACK, RANK, lambda adapted: adapted(tokens[:8]), n_blocks=2)


def activations(model: PeftModel) -> dict[str, Activations]:
    """What the layers at each place get and give on public sentences, a row a word."""
    seen: dict[str, Activations] = {}
    hooks = [
        layer.base_layer.register_forward_hook(
            lambda _, given, output, place=layer.place: seen.update(
                {place: Activations(given[0].flatten(0, 1), output.flatten(0, 1))}
            )
        )
        for layer in model.modules()
        if isinstance(layer, GatedLinear) and layer.place
    ]
    with torch.no_grad():
        model(sentences(500, 1)[0])
    for hook in hooks:
        hook.remove()
    return seen


@torch.no_grad()
def error(model: nn.Module) -> float:
    """Of the task on new sentences: words of the second kind mean what the next one meant."""
    tokens, first, second = sentences(300, 2)
    return float((model(tokens) - meaning(first, (second + 1) % KINDS[1])).square().mean())


def gains(name: str, source: PeftModel, target: PeftModel) -> tuple[float, float]:
    """Share of the error that P, Q learnt on `source` remove there, and in `target`."""
    seen = activations(source), activations(target)
    placed: list[dict[str, Projections]] = [{}, {}]
    for number, place in enumerate(seen[0]):
        for own, given in zip(placed, ALIGNMENTS[name]([side[place] for side in seen], RANK, number), strict=True):
            own[place] = given
    for model, given in zip((source, target), placed, strict=True):
        set_projections(model, given)
        for value in pq_tensors(model).values():
            value.zero_()
        activate(model, [LOCAL])
        for parameter_name, parameter in model.named_parameters():
            parameter.requires_grad_(f"lora_PQ.{LOCAL}" in parameter_name)
    before = error(source), error(target)
    tokens, first, second = sentences(2000, 3)
    train(source, tokens, meaning(first, (second + 1) % KINDS[1]), rate=1e-2, steps=60)
    for place, value in pq_tensors(source).items():
        pq_tensors(target)[place].copy_(value)
    return 1 - error(source) / before[0], 1 - error(target) / before[1]


def test_what_one_tower_learnt_helps_another_when_aligned_and_not_when_random() -> None:
    source, target = tower(TowerSize(32, 2), seed=1), tower(TowerSize(64, 4), seed=2)
    own, transferred = gains("whitened", source, target)
    assert own > 0.7
    assert transferred > 0.2
    assert gains("random", source, target)[1] < 0.1
