"""Scores answers in words: the loss of a token of the right answer, and how much of it is written (ROUGE-L, Lin 2004)."""

import re
from collections.abc import Sequence

import torch

from tessera.client.language.dataset import ASKED_AT_ONCE, TextDataset
from tessera.common.metrics.names import LARGEST_LOSS, ROUGE, TOKEN_LOSS, USERS, VALIDATION, MetricName
from tessera.common.metrics.ranking import MetricSums
from tessera.common.towers.models.base import TextModel
from tessera.common.towers.models.causal import CausalModel

WRITES = 16
"""Questions, of a set of tests, whose answers are written out: that takes a pass for each token."""
STANDS = ("frozen", "after")
"""How a device stands when it writes: before any training, and at the end."""


@torch.no_grad()
def score_writing(variant: str, name: str, model: TextModel, asked: TextDataset) -> MetricSums:
    """Token loss over all questions without choices, in nats, and at the beginning and the end ROUGE-L over some of them."""
    if not isinstance(model, CausalModel):
        return MetricSums()
    rows = asked.written
    losses, tokens = zip(
        *(model.token_losses(asked.batch.take(part)) for part in torch.split(rows, ASKED_AT_ONCE)), strict=True
    )
    loss = float(torch.cat(losses).sum() / torch.cat(tokens).sum())
    named = {TOKEN_LOSS: min(loss, LARGEST_LOSS), USERS: 1.0}
    if variant in STANDS and name != VALIDATION:
        first = rows[torch.linspace(0, len(rows) - 1, min(WRITES, len(rows))).long()]
        written = model.write(asked.batch.take(first))
        right = [asked.questions.answers[row] for row in first.tolist()]
        named[ROUGE] = sum(rouge_l(one, other) for one, other in zip(written, right, strict=True)) / len(right)
    return MetricSums.of_metrics({MetricName(variant, f"{name}-written", what): value for what, value in named.items()})


def rouge_l(written: str, right: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1."""
    one, other = (re.findall(r"\w+", text.lower()) for text in (written, right))
    if not one or not other:
        return 0.0
    common = _longest_common(one, other)
    return 2 * common / (len(one) + len(other))


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    before = [0] * (len(other) + 1)
    for word in one:
        row = [0]
        for place, same in enumerate(other):
            row.append(before[place] + 1 if word == same else max(row[-1], before[place + 1]))
        before = row
    return before[-1]
