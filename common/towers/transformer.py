"""Small transformers for pictures and texts (towers), one size for each device class, distilled on the public catalogue.

The names inside a layer are those of open_clip once its attention is split: `attn.q_proj` to `attn.out_proj`, `mlp.c_fc`,
`mlp.c_proj`. So the places of P and Q are the same in towers of either kind. All classes share one output size.
"""

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tessera.common.config.settings import TOWER_DIM
from tessera.common.towers.attention import SplitAttention
from tessera.common.utils import counter_rng

SIDE = 64
"""Pictures are [3, SIDE, SIDE]."""
PATCH = 8
LENGTH = 48
"""Words of a text that are read; the rest is cut off."""
VOCABULARY = 8192
"""Words are hashed into so many entries; 0 is padding."""
HEAD = 32
"""Width of an attention head."""


@dataclass(frozen=True)
class TowerSize:
    """Width and depth of a device class. Depths are multiples of 4: Eq. 6 then spreads four blocks evenly."""

    width: int
    depth: int


SIZES = {"tiny": TowerSize(64, 4), "small": TowerSize(96, 8), "base": TowerSize(128, 8)}


class Layer(nn.Module):
    """A pre-norm transformer layer on [n, length, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SplitAttention(width // HEAD, [nn.Linear(width, width) for _ in range(4)])
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width))]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor, hidden: Tensor | None) -> Tensor:
        """One layer; `hidden` [n * heads, length, length] is True where a position must not be attended."""
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, attn_mask=hidden)[0]
        x = x + self.mlp(self.ln_2(x))
        return x


class Tower(nn.Module):
    """Layers on embedded positions, their pooling, and a projection to what all towers share, [n, TOWER_DIM]."""

    def __init__(self, size: TowerSize, n_positions: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(n_positions, size.width) * 0.02)
        self.n_heads = size.width // HEAD
        self.layers = nn.ModuleList(Layer(size.width) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, TOWER_DIM)

    def encode(self, embedded: Tensor, present: Tensor) -> Tensor:
        """From `embedded` [n, length, width] and which positions are `present` [n, length]. An empty row gives the bias."""
        x = embedded + self.positions[: embedded.shape[1]]
        hidden = None if bool(present.all()) else self._hidden(present)
        for layer in self.layers:
            x = layer(x, hidden)
        return self.head(self.pool(self.norm(x), present))  # type: ignore[no-any-return]

    def pool(self, x: Tensor, present: Tensor) -> Tensor:
        """The mean of the positions `x` [n, length, width] that are `present`, [n, width]."""
        counted = present[..., None].to(x.dtype)
        return (x * counted).sum(1) / counted.sum(1).clamp(min=1)

    def _hidden(self, present: Tensor) -> Tensor:
        # A row that hides every position would be all NaN: an absent position sees all, and counts nowhere.
        hidden = ~present[:, None, :] & present[:, :, None]
        return hidden.repeat_interleave(self.n_heads, dim=0)


class ImageTower(Tower):
    """Pictures [n, 3, SIDE, SIDE] in 0 to 1 to vectors [n, TOWER_DIM]."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__(size, (SIDE // PATCH) ** 2)
        self.patches = nn.Conv2d(3, size.width, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        """Encode pictures."""
        embedded = self.patches(images * 2 - 1).flatten(2).transpose(1, 2)
        return self.encode(embedded, torch.ones(embedded.shape[:2], dtype=torch.bool, device=images.device))


class TextTower(Tower):
    """Words [n, length], as `words` makes them, to vectors [n, TOWER_DIM]."""

    def __init__(self, size: TowerSize) -> None:
        super().__init__(size, LENGTH)
        self.embedding = nn.Embedding(VOCABULARY, size.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode texts."""
        return self.encode(self.embedding(tokens), tokens != 0)


def words(texts: Sequence[str]) -> Tensor:
    """Hash the words of each text, [n, LENGTH] int64; 0 where there is none. Nothing is learnt, nothing downloaded."""
    tokens = torch.zeros(len(texts), LENGTH, dtype=torch.int64)
    for row, text in enumerate(texts):
        found = re.findall(r"\w+", text.lower())[:LENGTH]
        tokens[row, : len(found)] = torch.tensor(
            [1 + counter_rng.key("word", word) % (VOCABULARY - 1) for word in found]
        )
    return tokens
