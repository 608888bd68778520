"""Fitting readers of all sizes on a catalogue, before any device has been asked anything.

The largest learns pretext questions (`tessera.server.pretraining.pretext_tasks`); smaller ones are *derived* from it: the same
questions, and what it answers and holds at the ends of its blocks (FitNets, Romero et al. 2015). Towers that see alike at
corresponding depths are what an alignment of P and Q needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, layer_norm

from tessera.common.data.questions import NOTHING, Questions, choice_logits
from tessera.common.towers.adapter_placement import block_ends
from tessera.common.towers.qa_reader import QAReader, instructions
from tessera.common.towers.transformer import VOCABULARY, TowerSize
from tessera.common.utils import counter_rng
from tessera.server.pretraining.pretext_tasks import INSTRUCTIONS, Pretext

STEPS, BATCH, RATE = 1500, 96, 1e-3
REGRESSION_WEIGHT = 0.5
"""Weight of the cosine distance to the right choice: without it only differences between choices are learnt."""
HIDDEN = 0.25
"""Weight of the squared distance to what the larger reader holds at the ends of its blocks."""
WORD_DROPOUT, DERIVED_WORD_DROPOUT = 0.15, 0.3
"""Share of an instruction's words that are replaced: a reader should not be sure of what it was not told. More of them where a
reader is derived: it has to learn how the larger one takes words that no pretext has, which devices' questions are full of."""
N_BLOCKS = 4
DRAWN_AT_ONCE = 24
"""Batches whose questions are drawn together: drawing a few costs as much as drawing many."""
N_EVAL_QUESTIONS = 4000
"""Questions by which an accuracy is measured."""


@dataclass(frozen=True)
class QuestionBatch:
    """Questions with what it takes to ask them: words `read` [n, READ], the choices' vectors `offered` [n, n_choices, dim]."""

    questions: Questions
    read: Tensor
    offered: Tensor

    @staticmethod
    def of(world: Pretext, n: int, salt: int, lost: float = 0.0) -> "QuestionBatch":
        """Draw `n` pretext questions, of whose instructions a share of words is `lost`: any others stand there instead."""
        questions = world.questions(n, salt)
        read = instructions(INSTRUCTIONS)[questions.tasks]
        draws = counter_rng.uniform(counter_rng.key("lost", salt), torch.arange(read.numel())).view_as(read)
        other = 1 + counter_rng.mix(counter_rng.key("words", salt), torch.arange(read.numel())).view_as(read) % (
            VOCABULARY - 1
        )
        read = torch.where((draws < lost) & (read != 0), other, read)
        return QuestionBatch(questions, read, world.codebook.vectors(questions.choices))

    def take(self, rows: Tensor) -> "QuestionBatch":
        """Some of the questions."""
        return QuestionBatch(self.questions.take(rows), self.read[rows], self.offered[rows])

    @property
    def present(self) -> Tensor:
        """Which positions a reader reads, [n, 1 + n_pieces]: the instruction, and what is shown."""
        shown = self.questions.pieces[..., 0] != NOTHING
        return torch.cat([torch.ones_like(shown[:, :1]), shown], dim=1)

    @property
    def right(self) -> Tensor:
        """The right choices' vectors, [n, dim]."""
        return self.offered[torch.arange(len(self.read)), self.questions.answers]

    def logits(self, answered: Tensor) -> Tensor:
        """What answers [n, dim] say of their choices, [n, n_choices], as `choice_logits`."""
        return choice_logits(answered, self.offered, self.questions.choices)


@dataclass(frozen=True)
class ReaderInputs:
    """What readers look at: standardised features `image` and `text`, [n_items, n_features] each."""

    image: Tensor
    text: Tensor

    def answer(self, reader: QAReader, quiz: QuestionBatch) -> Tensor:
        """What a reader says to the questions, [n, dim]; it looks only at the items that they show."""
        kinds, items = quiz.questions.pieces.unbind(-1)
        shown, places = torch.unique(items, return_inverse=True)
        sight = reader.embed_items(self.image[shown], self.text[shown])
        answered: Tensor = reader(quiz.read, torch.stack([kinds, places], -1), sight)
        return answered


def fit(
    size: TowerSize,
    world: Pretext,
    eyes: ReaderInputs,
    teacher: QAReader | None,
    steps: int,
    advance: Callable[[], None],
) -> QAReader:
    """Fit a reader in `steps` batches, derived from the `teacher` if there is one; `advance` is called after each.

    The same arguments give the same reader.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size.width)
        reader = QAReader(size, eyes.image.shape[1], eyes.text.shape[1])
        derivation = None if teacher is None else _Derivation(reader, teacher)
    parameters = [*reader.parameters(), *(derivation.maps.parameters() if derivation else ())]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for quiz in _question_batches(world, steps, WORD_DROPOUT if teacher is None else DERIVED_WORD_DROPOUT):
        optimizer.zero_grad()
        loss = derivation.loss(eyes, quiz) if derivation else _loss(quiz, eyes.answer(reader, quiz))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        advance()
    return reader.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def accuracy(reader: QAReader, world: Pretext, eyes: ReaderInputs) -> dict[str, float]:
    """Share of new pretext questions that are answered rightly, by instruction, and "all" of them."""
    quiz = QuestionBatch.of(world, N_EVAL_QUESTIONS, salt=-1)
    right = (quiz.logits(eyes.answer(reader, quiz)).argmax(1) == quiz.questions.answers).float()
    by_task = {
        INSTRUCTIONS[task]: float(right[quiz.questions.tasks == task].mean())
        for task in torch.unique(quiz.questions.tasks)
    }
    return by_task | {"all": float(right.mean())}


def _question_batches(world: Pretext, steps: int, lost: float) -> Iterator[QuestionBatch]:
    for start in range(0, steps, DRAWN_AT_ONCE):
        drawn = QuestionBatch.of(world, BATCH * DRAWN_AT_ONCE, salt=start, lost=lost)
        for rows in torch.split(torch.arange(len(drawn.read)), BATCH)[: steps - start]:
            yield drawn.take(rows)


def _loss(quiz: QuestionBatch, answered: Tensor) -> Tensor:
    away = 1 - cosine_similarity(answered, quiz.right)
    return cross_entropy(quiz.logits(answered), quiz.questions.answers) + REGRESSION_WEIGHT * away.mean()


class _Derivation:
    """What a smaller reader learns from a larger one besides the questions; the `maps` between their widths are thrown away."""

    def __init__(self, reader: QAReader, teacher: QAReader) -> None:
        self.reader, self.teacher = reader, teacher
        widths = reader.positions.shape[1], teacher.positions.shape[1]
        self.maps = nn.ModuleList(nn.Linear(*widths) for _ in range(N_BLOCKS))

    def loss(self, eyes: ReaderInputs, quiz: QuestionBatch) -> Tensor:
        """The loss of a batch."""
        with _held(self.reader) as own:
            answered = eyes.answer(self.reader, quiz)
        with torch.no_grad(), _held(self.teacher) as theirs:
            told = eyes.answer(self.teacher, quiz)
        loss = _loss(quiz, answered) + (1 - cosine_similarity(answered, told)).mean()
        for mapped, mine, other in zip(self.maps, own, theirs, strict=True):
            wanted = layer_norm(other, other.shape[-1:])[quiz.present]
            loss = loss + HIDDEN * (mapped(mine[quiz.present]) - wanted).square().mean()
        return loss


@contextmanager
def _held(reader: QAReader) -> Iterator[list[Tensor]]:
    """Collect what a reader holds at the ends of its blocks, [n, length, width] each, while it answers."""
    held: list[Tensor] = []
    ends = [reader.layers[layer - 1] for layer in block_ends(len(reader.layers), N_BLOCKS)]
    hooks = [end.register_forward_hook(lambda _, __, output: held.append(output)) for end in ends]
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()
