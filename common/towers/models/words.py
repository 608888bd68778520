"""Cuts texts into tokens that know their words, so that models with different tokenizers can be compared word by word."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WordTokens:
    """Texts as tokens: `ids` and `mask` [n, length]; `word` [n, length] is the number of a token's word over all texts, -1
    where it belongs to none; `n_words` in all, the same for every model that was given the same texts."""

    ids: Tensor
    mask: Tensor
    word: Tensor
    n_words: int

    def kept(self, texts: Sequence[Sequence[str]]) -> list[int]:
        """How many words of each of the `texts` that these were cut from have tokens."""
        has = (self._counts() > 0).int().split([len(text) for text in texts])  # type: ignore[no-untyped-call]
        return [int(part.sum()) for part in has]

    def mean(self, states: Tensor) -> Tensor:
        """Mean of a word's tokens, [n_words, width], of `states` [n, length, width]."""
        return self.total(states) / self._counts().clamp(min=1)[:, None].to(states)

    def total(self, states: Tensor) -> Tensor:
        """Sum over a word's tokens, [n_words, ...], of `states` [n, length, ...]."""
        inside = self.word >= 0
        out = states.new_zeros(self.n_words, *states.shape[2:])
        return out.index_add(0, self.word[inside], states[inside])

    def _counts(self) -> Tensor:
        return torch.bincount(self.word[self.word >= 0], minlength=self.n_words)


def cut_words(
    texts: Sequence[Sequence[str]],
    tokens_of: Callable[[str, bool], list[int]],
    ends: tuple[list[int], list[int]],
    pad: int,
    longest: int,
) -> WordTokens:
    """Cut `texts`, each a sequence of words: `tokens_of` gives a word's tokens, and is told whether it is the first.

    What stands before and behind a text, `ends`, counts with its first and last word: some models pool there. A text of
    more than `longest` tokens loses its last words.
    """
    rows: list[tuple[list[int], list[int]]] = []
    number = 0
    for text in texts:
        ids, word = list(ends[0]), [-1] * len(ends[0])
        for place, one in enumerate(text):
            found = tokens_of(one, place == 0)
            if len(ids) + len(found) + len(ends[1]) <= longest and (not place or number - 1 in word[-1:]):
                ids, word = ids + found, word + [number] * len(found)
            number += 1
        known = [one for one in word if one >= 0] or [-1]
        word = [known[0]] * len(ends[0]) + word[len(ends[0]) :]
        rows.append((ids + ends[1], word + [known[-1]] * len(ends[1])))
    length = max(len(ids) for ids, _ in rows)
    filled = [(ids + [pad] * (length - len(ids)), word + [-1] * (length - len(word))) for ids, word in rows]
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows])
    return WordTokens(torch.tensor([i for i, _ in filled]), mask, torch.tensor([w for _, w in filled]), number)
