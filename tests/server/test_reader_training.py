"""Fitting readers: they learn, the same fit gives the same reader, and smaller ones take after the larger."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from tessera.common.towers.qa_reader import QAReader
from tessera.common.towers.transformer import TowerSize
from tessera.server.pretraining.pretext_tasks import Pretext
from tessera.server.pretraining.reader_training import QuestionBatch, ReaderInputs, accuracy, fit

LARGE, SMALL, STEPS = TowerSize(64, 4), TowerSize(32, 4), 80
EASY = "is it more or less one"


@cache
def inputs() -> ReaderInputs:
    """Pictures and texts of items that have 10 hidden things in common."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 10, generator=generator)
    image, text = (hidden @ torch.randn(10, n, generator=generator) / 3 for n in (90, 70))
    return ReaderInputs(image, text)


@cache
def pretext() -> Pretext:
    return Pretext.of(inputs().image, inputs().text, torch.arange(200))


def fitted(size: TowerSize, teacher: QAReader | None, steps: int) -> tuple[QAReader, int]:
    calls: list[None] = []
    reader = fit(size, pretext(), inputs(), teacher, steps, lambda: calls.append(None))
    return reader, len(calls)


@cache
def large() -> QAReader:
    return fitted(LARGE, None, STEPS)[0]


def test_a_reader_learns_what_holds_for_items_it_has_not_seen() -> None:
    right = accuracy(large(), pretext().about(torch.arange(200, 300)), inputs())
    assert right[EASY] > 0.7
    assert right["all"] > accuracy(QAReader(LARGE, 90, 70), pretext(), inputs())["all"] + 0.05
    assert not any(parameter.requires_grad for parameter in large().parameters())


def test_the_same_fit_gives_the_same_reader_and_counts_its_steps() -> None:
    (one, steps), (again, _) = fitted(SMALL, None, 15), fitted(SMALL, None, 15)
    assert steps == 15
    assert all(torch.equal(mine, other) for mine, other in zip(one.parameters(), again.parameters(), strict=True))


@torch.no_grad()
def retrieval_metrics(reader: QAReader) -> float:
    """Mean cosine to what the large reader says, to instructions with words that no pretext has."""
    batch = QuestionBatch.of(pretext(), 300, salt=9, lost=0.5)
    answers: list[Tensor] = [inputs().answer(each, batch) for each in (reader, large())]
    return float(cosine_similarity(*answers).mean())


def test_a_derived_reader_takes_after_its_teacher() -> None:
    derived, alone = fitted(SMALL, large(), STEPS)[0], fitted(SMALL, None, STEPS)[0]
    assert retrieval_metrics(derived) > retrieval_metrics(alone) + 0.03
