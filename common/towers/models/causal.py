"""A causal language model as a device class: it is trained to write answers, and chooses by the letter it would write."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from tessera.common.data.text_questions import N_CHOICES, TextQuestions
from tessera.common.errors import DataError
from tessera.common.towers.models.base import STACK, TextModel, blocks_of, last_linear, offered_mask
from tessera.common.towers.models.words import WordTokens, cut_words

LETTERS = "ABCD"
LENGTH = 192
"""Tokens of a prompt that are read, from its end; more are cut off at its beginning."""
WRITTEN = 40
"""Tokens of an answer that are learnt and written."""


@dataclass(frozen=True)
class Prompted:
    """Prompts with their answers behind, `ids` and `mask` [n, length]; answers begin at `begins` [n]. `letters` [n, N_CHOICES]
    are the tokens of the letters of the choices that there are, -1 where there is none; `right` [n], -1 without choices."""

    ids: Tensor
    mask: Tensor
    begins: Tensor
    letters: Tensor
    right: Tensor

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.ids)

    def take(self, rows: Tensor) -> "Prompted":
        """Some of the questions, no longer than their longest."""
        ids, mask, begins, letters, right = (
            part[rows.to(part.device)] for part in (self.ids, self.mask, self.begins, self.letters, self.right)
        )
        length = int(mask.sum(1).max()) if len(ids) else 0
        return Prompted(ids[:, :length], mask[:, :length], begins, letters, right)

    def to(self, device: torch.device) -> "Prompted":
        """The same on a device."""
        return Prompted(*(part.to(device) for part in (self.ids, self.mask, self.begins, self.letters, self.right)))

    @property
    def answered(self) -> Tensor:
        """Which tokens are of an answer, [n, length]."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (places >= self.begins[:, None]) & (self.mask > 0)

    @property
    def prompts(self) -> "Prompted":
        """The same without the answers."""
        places = torch.arange(self.ids.shape[1], device=self.ids.device)
        mask = self.mask * (places < self.begins[:, None])
        return Prompted(self.ids, mask, self.begins, self.letters, self.right)


class CausalModel(TextModel):
    """A language model that reads from left to right, with its tokenizer."""

    writes = True

    def __init__(self, model: nn.Module, tokenizer: Any, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer, self.name = model, tokenizer, name
        config: Any = getattr(model.config, "text_config", model.config)
        path = blocks_of(model, config.num_hidden_layers)
        self.stacks = {STACK: f"model.{path}"}
        self.signs_with = last_linear(self, f"model.{path}", "attn.out_proj")
        self._body = (_body(model, path),)  # in a tuple: it is part of the model already

    @property
    def body(self) -> nn.Module:
        """What turns token ids into states: of a model that also sees pictures, its language model."""
        return self._body[0]

    def read(self, questions: TextQuestions) -> Prompted:
        """Prompt, lettered choices and answer of each question."""
        rows = [
            self._tokens(prompt, offered, answer)
            for prompt, offered, answer in zip(questions.prompts, questions.choices, questions.answers, strict=True)
        ]
        length, pad = max(len(prompt) + len(answer) for prompt, answer in rows), self._pad
        ids = torch.full((len(rows), length), pad)
        mask = torch.zeros_like(ids)
        for row, (prompt, answer) in enumerate(rows):
            whole = torch.tensor(prompt + answer)
            ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        letters = torch.tensor([self._encode(f" {letter}")[-1] for letter in LETTERS]).expand(len(rows), -1)
        letters = torch.where(offered_mask(questions), letters, -1)
        return Prompted(ids, mask, torch.tensor([len(prompt) for prompt, _ in rows]), letters, questions.right)

    def _tokens(self, prompt: str, offered: Sequence[str], answer: str) -> tuple[list[int], list[int]]:
        lines = [prompt, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, offered, strict=False)), "Answer:"]
        shown = self._encode("\n".join(lines))[-LENGTH:]
        if offered:
            return shown, [self._encode(f" {LETTERS[offered.index(answer)]}")[-1]]
        ending = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return shown, self._encode(f" {answer}")[:WRITTEN] + ending

    def forward(self, batch: Prompted) -> Tensor:
        """Log-odds of the letters of choices, [n, N_CHOICES]."""
        states = self._states(batch.ids, batch.mask)
        last = states[torch.arange(len(batch), device=states.device), batch.begins - 1]
        logits = self._head(last).float().gather(1, batch.letters.clamp(min=0))
        return logits.masked_fill(batch.letters < 0, -torch.inf)

    def loss(self, batch: Prompted) -> Tensor:
        """Mean over questions of the mean loss of an answer's tokens."""
        sums, counts = self.token_losses(batch)
        return (sums / counts).mean()

    def token_losses(self, batch: Prompted) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each answer, [n], and its number of tokens, [n]."""
        states = self._states(batch.ids, batch.mask)
        wanted = batch.answered[:, 1:]
        rows = wanted.nonzero()[:, 0]
        losses = cross_entropy(self._head(states[:, :-1][wanted]).float(), batch.ids[:, 1:][wanted], reduction="none")
        zero = losses.new_zeros(len(batch))
        return zero.index_add(0, rows, losses), zero.index_add(0, rows, torch.ones_like(losses))

    def vectors(self, batch: Prompted) -> Tensor:
        """The state behind the prompt, [n, width]."""
        states = self._states(batch.ids, batch.mask)
        return states[torch.arange(len(batch), device=states.device), batch.begins - 1].float()

    @torch.no_grad()
    def write(self, batch: Prompted) -> list[str]:
        """The answers that it writes, always the likeliest token, up to the end of a line."""
        prompts = [batch.ids[row, : int(batch.begins[row])] for row in range(len(batch))]
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0), value=self._pad) for one in prompts])
        mask = torch.stack([(torch.arange(longest) >= longest - len(one)).long() for one in prompts]).to(ids.device)
        made = self.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=WRITTEN,
            do_sample=False,
            pad_token_id=self._pad,
            eos_token_id=self._ends,
            use_cache=True,
        )
        texts = [self.tokenizer.decode(one, skip_special_tokens=True).strip() for one in made[:, longest:]]
        return [text.split("\n")[0] for text in texts]

    def cut(self, texts: Sequence[Sequence[str]]) -> WordTokens:
        """Tokens of words, each but the first with the space before it."""
        tokens_of = lambda word, first: self._encode(word if first else f" {word}")  # noqa: E731
        return cut_words(texts, tokens_of, ([], []), self._pad, LENGTH)

    def run(self, words: WordTokens) -> Tensor:
        """Last hidden states, [n, length, width]."""
        return self._states(words.ids, words.mask)

    def word_likelihoods(self, words: WordTokens) -> Tensor:
        """Log-likelihood of each word, [n_words]; a text's first is given."""
        states = self.run(words)
        logits = self._head(states[:, :-1]).float().log_softmax(-1)
        found = logits.gather(2, words.ids[:, 1:, None])[..., 0]
        return words.total(torch.cat([torch.zeros_like(found[:, :1]), found], 1))

    def pooled(self, words: WordTokens) -> Tensor:
        """The state at the last token, a unit vector, [n, width]."""
        states, last = self.run(words).float(), words.mask.sum(1) - 1
        return normalize(states[torch.arange(len(states), device=states.device), last], dim=1)

    def _states(self, ids: Tensor, mask: Tensor) -> Tensor:
        states: Tensor = self.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states

    def _head(self, states: Tensor) -> Tensor:
        return self.model.get_output_embeddings()(states)  # type: ignore[operator, no-any-return]

    def _encode(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not found:
            raise DataError(f"the tokenizer of {self.name} makes nothing of {text!r}: it does not belong to this model")
        return found

    @property
    def _ends(self) -> list[int]:
        """Tokens behind which nothing of an answer stands: the tokenizer's own end, and where it is one token the line's."""
        own, line = self.tokenizer.eos_token_id, self._encode("\n")
        return ([] if own is None else [int(own)]) + (line if len(line) == 1 else [])

    @property
    def _pad(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)


def _body(model: nn.Module, path: str) -> nn.Module:
    """The module around the blocks that turns token ids into states: of a model that also sees pictures, its language model."""
    return model.get_submodule(path.rpartition(".")[0])


assert len(LETTERS) == N_CHOICES
