"""An encoder of texts as a device class: it chooses what lies nearest to the question."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from tessera.common.data.text_questions import N_CHOICES, TextQuestions
from tessera.common.errors import DataError
from tessera.common.towers.models.base import STACK, TextModel, blocks_of, last_linear, offered_mask
from tessera.common.towers.models.words import WordTokens, cut_words
from tessera.common.towers.open_clip import ClipTower
from tessera.common.towers.pretrained import TextTower, Tokens

LENGTH = 128
TEMPERATURE = 0.1
"""Of the softmax over choices: cosines alone are too alike to learn from."""


@dataclass(frozen=True)
class Compared:
    """Questions `prompts` [n] and their choices, [n * N_CHOICES] in order; those `offered` [n, N_CHOICES] are there."""

    prompts: Tokens
    choices: Tokens
    offered: Tensor
    right: Tensor

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.offered)

    def take(self, rows: Tensor) -> "Compared":
        """Some of the questions."""
        rows = rows.to(self.offered.device)
        places = (rows[:, None] * N_CHOICES + torch.arange(N_CHOICES, device=rows.device)).flatten()
        return Compared(self.prompts.take(rows), self.choices.take(places), self.offered[rows], self.right[rows])

    def to(self, device: torch.device) -> "Compared":
        """The same on a device."""
        return Compared(
            self.prompts.to(device), self.choices.to(device), self.offered.to(device), self.right.to(device)
        )


class EncoderModel(TextModel):
    """A text encoder of transformers, or the half of an open_clip model that reads texts."""

    writes = False

    def __init__(self, tower: TextTower | ClipTower) -> None:
        super().__init__()
        self.tower, self.name = tower, tower.name
        layers = None if isinstance(tower, ClipTower) else int(tower.model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
        path = f"tower.model.{blocks_of(tower.model, layers)}"
        self.stacks = {STACK: path}
        self.signs_with = last_linear(self, path, "attn.out_proj")

    def read(self, questions: TextQuestions) -> Compared:
        """Tokens of prompts and choices. Raises `DataError` for a question to be answered in words."""
        if wrong := [number for number, offered in enumerate(questions.choices) if not offered]:
            task = questions.names[int(questions.tasks[wrong[0]])]
            raise DataError(
                f"{self.name} compares texts and cannot write: the task {task!r} has questions without choices"
            )
        filled = [choice for offered in questions.choices for choice in (*offered, *[""] * (N_CHOICES - len(offered)))]
        prompts, choices = (self.tower.inputs(texts, LENGTH) for texts in (questions.prompts, filled))
        if not isinstance(prompts, Tokens) or not isinstance(choices, Tokens):
            raise DataError(f"{self.name} reads no texts")
        return Compared(prompts, choices, offered_mask(questions), questions.right)

    def forward(self, batch: Compared) -> Tensor:
        """Cosines of questions and choices over the temperature, [n, N_CHOICES]."""
        asked = self.vectors(batch)
        offered = self.tower(_short(batch.choices)).float().view(len(batch), N_CHOICES, -1)
        cosines = torch.einsum("nd,ncd->nc", asked, offered)
        return (cosines / TEMPERATURE).masked_fill(~batch.offered, -torch.inf)

    def loss(self, batch: Compared) -> Tensor:
        """Cross-entropy of the right choices."""
        return cross_entropy(self(batch), batch.right)

    def vectors(self, batch: Compared) -> Tensor:
        """Unit vectors of the prompts, [n, width]."""
        found: Tensor = self.tower(_short(batch.prompts)).float()
        return found

    def cut(self, texts: Sequence[Sequence[str]]) -> WordTokens:
        """Tokens of words, between what this model puts around a text."""
        if isinstance(self.tower, ClipTower):
            (tokenizer,) = self.tower.vocabulary
            length = int(tokenizer.context_length)
            found = cut_words(
                texts,
                lambda word, _: tokenizer.encode(word),
                ([tokenizer.sot_token_id], [tokenizer.eot_token_id]),
                0,
                length,
            )
            room = length - found.ids.shape[1]
            ids, mask = (torch.nn.functional.pad(part, (0, room)) for part in (found.ids, found.mask))
            return WordTokens(ids, mask, torch.nn.functional.pad(found.word, (0, room), value=-1), found.n_words)
        tokenizer = self.tower.tokenizer
        around = tokenizer("", add_special_tokens=True)["input_ids"]
        ends = (around[:1], around[1:]) if around else ([], [])
        encode = lambda word, _: tokenizer(word, add_special_tokens=False)["input_ids"]  # noqa: E731
        return cut_words(texts, encode, ends, tokenizer.pad_token_id or 0, LENGTH)

    def run(self, words: WordTokens) -> Tensor:
        """Run the model, and give what it pools, [n, width]: its blocks are watched, not its last states."""
        found: Tensor = self.tower(Tokens(words.ids, words.mask))
        return found

    def word_likelihoods(self, words: WordTokens) -> None:
        """None: it predicts no words."""
        return None

    def pooled(self, words: WordTokens) -> Tensor:
        """Unit vectors of whole texts, [n, width]."""
        return normalize(self.run(words).float(), dim=1)


def _short(tokens: Tokens) -> Tokens:
    """Without columns that are padding in all rows; open_clip reads its full length."""
    length = max(1, int(tokens.mask.sum(1).max()))
    return Tokens(tokens.ids[:, :length], tokens.mask[:, :length])
