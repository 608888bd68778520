"""Trains question-answering towers (readers) of all sizes on a catalogue, before a federation begins.

The largest learns pretext questions (`tessera.server.pretraining.pretext_tasks`); smaller ones are *derived* from it: the same
questions, and its answers and hidden states at the ends of its blocks (FitNets, Romero et al. 2015). Towers whose hidden
states agree at corresponding depths are what an alignment of P and Q needs.
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
"""Weight of the squared distance to the larger reader's hidden states at the ends of its blocks."""
WORD_DROPOUT, DERIVED_WORD_DROPOUT = 0.15, 0.3
"""Share of an instruction's words that are replaced: a reader should not rely on any single word. More of them where a
reader is derived: it has to learn how the larger one takes words that no pretext has, which devices' questions are full of."""
N_BLOCKS = 4
DRAWN_AT_ONCE = 24
"""Batches whose questions are drawn together: drawing a few costs as much as drawing many."""
N_EVAL_QUESTIONS = 4000
"""Questions by which an accuracy is measured."""


@dataclass(frozen=True)
class QuestionBatch:
    """Questions as readers take them: words `read` [n, READ], the choices' vectors `offered` [n, n_choices, dim]."""

    questions: Questions
    read: Tensor
    offered: Tensor

    @staticmethod
    def of(pretext: Pretext, n: int, salt: int, lost: float = 0.0) -> "QuestionBatch":
        """Draw `n` pretext questions; a share `lost` of the words of their instructions is replaced by random ones."""
        questions = pretext.questions(n, salt)
        read = instructions(INSTRUCTIONS)[questions.tasks]
        draws = counter_rng.uniform(counter_rng.key("lost", salt), torch.arange(read.numel())).view_as(read)
        other = 1 + counter_rng.mix(counter_rng.key("words", salt), torch.arange(read.numel())).view_as(read) % (
            VOCABULARY - 1
        )
        read = torch.where((draws < lost) & (read != 0), other, read)
        return QuestionBatch(questions, read, pretext.codebook.vectors(questions.choices))

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
    """The items as readers take them: standardised features `image` and `text`, [n_items, n_features] each."""

    image: Tensor
    text: Tensor

    def answer(self, reader: QAReader, batch: QuestionBatch) -> Tensor:
        """A reader's answers to the questions, [n, dim]; only the items that they show are embedded."""
        kinds, items = batch.questions.pieces.unbind(-1)
        shown, places = torch.unique(items, return_inverse=True)
        item_embeddings = reader.embed_items(self.image[shown], self.text[shown])
        answered: Tensor = reader(batch.read, torch.stack([kinds, places], -1), item_embeddings)
        return answered


def fit(
    size: TowerSize,
    pretext: Pretext,
    inputs: ReaderInputs,
    teacher: QAReader | None,
    steps: int,
    advance: Callable[[], None],
) -> QAReader:
    """Fit a reader in `steps` batches, derived from the `teacher` if there is one; `advance` is called after each.

    The same arguments give the same reader.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(size.width)
        reader = QAReader(size, inputs.image.shape[1], inputs.text.shape[1])
        derivation = None if teacher is None else _Derivation(reader, teacher)
    parameters = [*reader.parameters(), *(derivation.maps.parameters() if derivation else ())]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.1)
    for batch in _question_batches(pretext, steps, WORD_DROPOUT if teacher is None else DERIVED_WORD_DROPOUT):
        optimizer.zero_grad()
        loss = derivation.loss(inputs, batch) if derivation else _loss(batch, inputs.answer(reader, batch))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        advance()
    return reader.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def accuracy(reader: QAReader, pretext: Pretext, inputs: ReaderInputs) -> dict[str, float]:
    """Share of new pretext questions that are answered rightly, by instruction, and "all" of them."""
    batch = QuestionBatch.of(pretext, N_EVAL_QUESTIONS, salt=-1)
    right = (batch.logits(inputs.answer(reader, batch)).argmax(1) == batch.questions.answers).float()
    by_task = {
        INSTRUCTIONS[task]: float(right[batch.questions.tasks == task].mean())
        for task in torch.unique(batch.questions.tasks)
    }
    return by_task | {"all": float(right.mean())}


def _question_batches(pretext: Pretext, steps: int, lost: float) -> Iterator[QuestionBatch]:
    for start in range(0, steps, DRAWN_AT_ONCE):
        drawn = QuestionBatch.of(pretext, BATCH * DRAWN_AT_ONCE, salt=start, lost=lost)
        for rows in torch.split(torch.arange(len(drawn.read)), BATCH)[: steps - start]:
            yield drawn.take(rows)


def _loss(batch: QuestionBatch, answered: Tensor) -> Tensor:
    away = 1 - cosine_similarity(answered, batch.right)
    return cross_entropy(batch.logits(answered), batch.questions.answers) + REGRESSION_WEIGHT * away.mean()


class _Derivation:
    """What a smaller reader learns from a larger one besides the questions; the `maps` between their widths are thrown away."""

    def __init__(self, reader: QAReader, teacher: QAReader) -> None:
        self.reader, self.teacher = reader, teacher
        widths = reader.positions.shape[1], teacher.positions.shape[1]
        self.maps = nn.ModuleList(nn.Linear(*widths) for _ in range(N_BLOCKS))

    def loss(self, inputs: ReaderInputs, batch: QuestionBatch) -> Tensor:
        """The loss of a batch."""
        with _hidden_states(self.reader) as own:
            answered = inputs.answer(self.reader, batch)
        with torch.no_grad(), _hidden_states(self.teacher) as theirs:
            teacher_outputs = inputs.answer(self.teacher, batch)
        loss = _loss(batch, answered) + (1 - cosine_similarity(answered, teacher_outputs)).mean()
        for mapped, mine, other in zip(self.maps, own, theirs, strict=True):
            wanted = layer_norm(other, other.shape[-1:])[batch.present]
            loss = loss + HIDDEN * (mapped(mine[batch.present]) - wanted).square().mean()
        return loss


@contextmanager
def _hidden_states(reader: QAReader) -> Iterator[list[Tensor]]:
    """Collect a reader's hidden states at the ends of its blocks, [n, length, width] each, while it answers."""
    states: list[Tensor] = []
    ends = [reader.layers[layer - 1] for layer in block_ends(len(reader.layers), N_BLOCKS)]
    hooks = [end.register_forward_hook(lambda _, __, output: states.append(output)) for end in ends]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
