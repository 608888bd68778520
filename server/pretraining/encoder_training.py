"""Trains small encoders of raw pictures and texts to map each item to its place in the catalogue's shared space.

The features that the space is made of may be a large encoder's (`tessera.common.encoders.clip`), and what such a tower learns
is then a distillation of it. A smaller tower also learns the outputs of the largest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize, pad

from tessera.common.encoders.towers import KINDS
from tessera.common.towers.transformer import ImageTower, TextTower, Tower, TowerSize
from tessera.common.utils import counter_rng

BATCH, RATE, DECAY = 48, 1e-3, 0.05
TEMPERATURE = 0.1
REGRESSION_WEIGHT = 0.5
"""Weight of the squared distance to where the item lies: the contrastive term leaves open how long a vector is."""
WORD_DROPOUT = 0.2
"""Share of a text's words that are left out of a batch: few items have to do for many words."""
SHIFT = 6
"""Pixels by which a picture is moved in a batch, at most."""
AT_ONCE = 256
"""Items that are encoded at once outside a fit."""


@dataclass(frozen=True)
class EncoderSamples:
    """Items as a tower takes them, and their places in the shared space, `wanted` [n, TOWER_DIM].

    `raw` are pictures [n, 3, SIDE, SIDE] uint8, or words [n, LENGTH] int64.
    """

    raw: Tensor
    wanted: Tensor

    def take(self, rows: Tensor) -> "EncoderSamples":
        """Some of the items."""
        return EncoderSamples(self.raw[rows], self.wanted[rows])


def fit(
    kind: str, size: TowerSize, seen: EncoderSamples, teacher: Tower | None, steps: int, advance: Callable[[], None]
) -> ImageTower | TextTower:
    """Fit a tower for pictures ("image") or texts ("text") in `steps` batches; `advance` is called after each.

    It is derived from the `teacher` if there is one. The same arguments give the same tower.
    """
    teacher_outputs = None if teacher is None else encode(teacher, seen.raw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size.width)
        tower = KINDS[kind](size)
    draws = torch.Generator().manual_seed(counter_rng.key("sight", kind) >> 1)
    optimizer = torch.optim.AdamW(tower.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        rows = torch.randperm(len(seen.raw), generator=draws)[:BATCH]
        answered = tower(_varied(seen.raw[rows], draws))
        loss = _loss(answered, seen.wanted[rows])
        if teacher_outputs is not None:
            loss = loss + (1 - cosine_similarity(answered, teacher_outputs[rows])).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        advance()
    return tower.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def encode(tower: Tower, raw: Tensor) -> Tensor:
    """A tower's outputs for items as they are, [n, TOWER_DIM]."""
    return torch.cat([tower(_taken(part)) for part in torch.split(raw, AT_ONCE)])


def retrieval_metrics(tower: Tower, seen: EncoderSamples) -> dict[str, float]:
    """Mean "cosine" to where items lie, and how often the right one of four random items is the closest ("retrieval").

    The latter is expected over the three others, each any of the rest: nothing is drawn. Chance is a quarter.
    """
    cosines = normalize(encode(tower, seen.raw), dim=1) @ seen.wanted.T
    right = cosines.diagonal()
    farther = (cosines < right[:, None]).float().sum(1) / (len(cosines) - 1)
    return {"cosine": float(right.mean()), "retrieval": float((farther**3).mean())}


def _loss(answered: Tensor, wanted: Tensor) -> Tensor:
    """Which of the batch's items is it (van den Oord et al. 2018), and where does that one lie?"""
    logits = normalize(answered, dim=1) @ wanted.T / TEMPERATURE
    away = (answered - wanted).square().sum(1).mean()
    return cross_entropy(logits, torch.arange(len(answered))) + REGRESSION_WEIGHT * away


def _taken(raw: Tensor) -> Tensor:
    """As a tower takes it: pictures in 0 to 1, words as they are."""
    return raw.float() / 255 if raw.dtype == torch.uint8 else raw


def _varied(raw: Tensor, draws: torch.Generator) -> Tensor:
    """A batch as it could have been as well: pictures mirrored and moved, words left out."""
    if raw.dtype != torch.uint8:
        return raw.where(torch.rand(raw.shape, generator=draws) >= WORD_DROPOUT, 0)
    side = raw.shape[-1]
    mirrored = torch.rand(len(raw), generator=draws) < 0.5
    images = torch.where(mirrored[:, None, None, None], raw.flip(-1), raw)
    images = pad(_taken(images), (SHIFT,) * 4, mode="replicate")
    corners = torch.randint(2 * SHIFT + 1, (len(raw), 2), generator=draws).tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, corners, strict=True)])
