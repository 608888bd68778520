"""Makes a small language model from a large one: some of its blocks, taught on public texts what all of them computed.

Blocks are kept at even distances, the first and the last among them. Each then learns to give what the blocks that it stands
for gave together: the squared distance of their states in units of the teacher's, at all of the kept depths (as in TinyBERT,
Jiao et al. 2020). Embeddings and the head stay the teacher's, so that what is last in the small model means the same.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tessera.common.errors import ConfigError, DataError
from tessera.common.towers.models.base import STACK
from tessera.common.towers.models.causal import CausalModel
from tessera.common.towers.models.load import load_text_model
from tessera.common.towers.models.words import WordTokens
from tessera.common.utils import counter_rng
from tessera.common.utils.computing.precision import resolved

STEPS, BATCH, RATE = 300, 4, 5e-4
HELD_OUT = 32
"""Public texts that nothing is learnt from, on which the loss of a token is measured."""


@dataclass(frozen=True)
class Pruned:
    """What became of a model: blocks and parameters, and the loss of a token of held-out texts, of the whole model, of the one
    with fewer blocks, and of that after it was taught; NaN without texts."""

    blocks: tuple[int, int]
    parameters: tuple[int, int]
    loss: tuple[float, float, float]


def prune(
    source: Path, target: Path, layers: int, texts: Sequence[Sequence[str]], steps: int, advance: Callable[[], None]
) -> Pruned:
    """Write the language model in the folder `source` with so many `layers` to `target`, taught in `steps` on `texts`.

    `texts` are words; without them nothing is taught. The same arguments give the same bytes on one kind of processor. Raises
    `ConfigError` for a model that writes nothing or a number of layers that does not fit, `DataError` where the model cannot
    be loaded, `target` is there already, or the texts are too few.
    """
    require_free(target)
    teacher = load_text_model(source)
    if not isinstance(teacher, CausalModel):
        raise ConfigError(f"{source} is no language model: only those can be cut")
    if texts and len(texts) <= HELD_OUT + BATCH:
        raise DataError(f"{len(texts)} texts are too few to teach a model on: {HELD_OUT + BATCH + 1} are needed")
    kept = spread(len(_blocks(teacher)), layers)
    student = CausalModel(_cut(teacher, kept), teacher.tokenizer, teacher.name)
    held, shown = texts[:HELD_OUT], texts[HELD_OUT:]
    losses = [_token_loss(one, held) if held else float("nan") for one in (teacher, student)]
    if shown:
        _teach(teacher, student, kept, shown, steps, advance)
        losses.append(_token_loss(student, held))
    student.model.to(teacher.model.dtype).save_pretrained(target)  # type: ignore[operator, arg-type]
    teacher.tokenizer.save_pretrained(target)
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in (teacher, student)]
    return Pruned((len(_blocks(teacher)), layers), (sizes[0], sizes[1]), (losses[0], losses[1], losses[-1]))


def require_free(target: Path) -> None:
    """Raise `DataError` where a model is not to be written because something is there."""
    if target.exists():
        raise DataError(f"{target} is there already: name another folder")


def spread(n: int, layers: int) -> list[int]:
    """Which of `n` blocks stay, at even distances. Raises `ConfigError` unless that is fewer than there are, and two."""
    if not 2 <= layers < n:
        raise ConfigError(f"{layers} layers: the model has {n}, keep 2 to {n - 1}")
    return [round(place * (n - 1) / (layers - 1)) for place in range(layers)]


def _blocks(model: CausalModel) -> nn.ModuleList:
    found: Any = model.get_submodule(model.stacks[STACK])
    return found  # type: ignore[no-any-return]


def _cut(teacher: CausalModel, kept: Sequence[int]) -> nn.Module:
    """The same architecture with some of the blocks, in float32, to be trained."""
    path = teacher.stacks[STACK].removeprefix("model.")
    config: Any = copy.deepcopy(teacher.model.config)
    inner: Any = getattr(config, "text_config", config)
    n_blocks, inner.num_hidden_layers = inner.num_hidden_layers, len(kept)
    for name, value in list(vars(inner).items()):  # what is said block by block, such as layer_types or no_rope_layers
        if isinstance(value, list) and len(value) == n_blocks:
            setattr(inner, name, [value[place] for place in kept])
    student: nn.Module = type(teacher.model)(config).float().eval()
    new = {f"{path}.{old}.": f"{path}.{place}." for place, old in enumerate(kept)}
    tensors = {}
    for name, value in teacher.model.state_dict().items():
        if not name.startswith(f"{path}."):
            tensors[name] = value
        elif (start := name[: name.index(".", len(path) + 1) + 1]) in new:
            tensors[new[start] + name.removeprefix(start)] = value
    student.load_state_dict(tensors)
    return student


def _teach(
    teacher: CausalModel,
    student: CausalModel,
    kept: Sequence[int],
    texts: Sequence[Sequence[str]],
    steps: int,
    advance: Callable[[], None],
) -> None:
    """Train the student's blocks: the embeddings and what is behind the blocks stay."""
    student.requires_grad_(requires_grad=False)
    learnt = list(_blocks(student).requires_grad_().parameters())
    optimizer = torch.optim.AdamW(learnt, RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(2, steps), pct_start=0.1)
    for step in range(steps):
        draws = counter_rng.uniform(counter_rng.key("pruning", step), torch.arange(BATCH)).double()
        words = teacher.cut([texts[place] for place in (draws * len(texts)).long().tolist()])
        loss = _distance(teacher, student, kept, words)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        advance()
    student.requires_grad_(requires_grad=False)


def _distance(teacher: CausalModel, student: CausalModel, kept: Sequence[int], words: WordTokens) -> Tensor:
    """Mean squared distance of the states at all kept depths, each in units of the teacher's variance."""
    with torch.no_grad():
        wanted = _states(teacher, words)
    with torch.autocast(words.ids.device.type, torch.bfloat16, enabled=resolved("auto") == "bfloat16"):
        found = _states(student, words)
    there = words.mask > 0
    depths = [*kept[1:], len(wanted) - 1]  # what comes in before a block is what those before it gave
    parts = []
    for own, depth in zip(found[1:], depths, strict=True):
        theirs = wanted[depth][there].float()
        parts.append((own[there].float() - theirs).square().mean() / theirs.var().clamp(min=1e-6))
    return torch.stack(parts).mean()


def _states(model: CausalModel, words: WordTokens) -> Sequence[Tensor]:
    found: Any = model.body(input_ids=words.ids, attention_mask=words.mask, use_cache=False, output_hidden_states=True)
    return found.hidden_states  # type: ignore[no-any-return]


@torch.no_grad()
def _token_loss(model: CausalModel, texts: Sequence[Sequence[str]]) -> float:
    """Mean loss of a token over some texts, in nats."""
    words = model.cut(texts)
    likelihoods = model.word_likelihoods(words)
    return -float(likelihoods.sum() / (words.mask[:, 1:].sum()))
