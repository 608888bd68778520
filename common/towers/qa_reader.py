"""The tower that answers questions about items: it turns an instruction, pictures and texts into an answer vector.

The instruction is one position, the sum of its words. Pictures and texts enter as the catalogue's frozen features, a
position each, projected to the tower's width: the towers of all device classes are given the same features and differ in
how they process them, as LLaVA's language models do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tessera.common.data.questions import N_PIECES
from tessera.common.towers.transformer import VOCABULARY, Tower, TowerSize, words
from tessera.common.utils import counter_rng

READ = 12
"""Words of an instruction that are read."""
SPREAD = 0.5
"""Standard deviation of positions and words at the start, that of a projected feature: smaller ones have no effect."""
CODE = 128
"""Size of a word's code."""


class QAReader(Tower):
    """Questions to vectors [n, TOWER_DIM]."""

    def __init__(self, size: TowerSize, image_dim: int, text_dim: int) -> None:
        super().__init__(size, 1 + N_PIECES)
        nn.init.normal_(self.positions, std=SPREAD)
        self.codes: Tensor
        self.register_buffer("codes", word_codes(), persistent=False)
        self.words = nn.Linear(CODE, size.width)
        nn.init.normal_(self.words.weight, std=SPREAD / CODE**0.5)
        self.item_projections = nn.ModuleList([nn.Linear(image_dim, size.width), nn.Linear(text_dim, size.width)])

    def embed_items(self, image: Tensor, text: Tensor) -> Tensor:
        """Embeddings of items by kind (nothing, picture, text), [3, n_items, width].

        From standardised features `image` [n_items, image_dim] and `text` [n_items, text_dim].
        """
        embedded = [layer(part) for layer, part in zip(self.item_projections, (image, text), strict=True)]
        return torch.stack([torch.zeros_like(embedded[0]), *embedded])

    def forward(self, read: Tensor, pieces: Tensor, item_embeddings: Tensor) -> Tensor:
        """Answer from words `read` [n, READ] and `pieces` [n, n_pieces, 2] as (kind, item), looked up in `item_embeddings`."""
        kinds, items = pieces.unbind(-1)
        embedded = torch.cat([self.words(self.codes[read].sum(1, keepdim=True)), item_embeddings[kinds, items]], dim=1)
        return self.encode(embedded, torch.cat([torch.ones_like(kinds[:, :1], dtype=torch.bool), kinds != 0], dim=1))

    def pool(self, x: Tensor, present: Tensor) -> Tensor:
        """The position of the instruction, [n, width]: its attention can weigh pieces against each other, a mean cannot."""
        return x[:, 0]


def word_codes() -> Tensor:
    """A fixed random code for every word, the same in all towers, [VOCABULARY, CODE]; zero where there is none.

    Learnt embeddings would leave words that no fit has shown as different in any two towers as their random starts, and what
    a device learns about such a word could not be carried over.
    """
    counters = torch.arange(VOCABULARY * CODE, dtype=torch.int64)
    codes = counter_rng.normal(counter_rng.key("word codes"), counters).view(VOCABULARY, CODE)
    codes[0] = 0
    return codes


def instructions(texts: Sequence[str]) -> Tensor:
    """The words of instructions, [n, READ]."""
    return words(texts)[:, :READ]
