"""What towers are aligned by: rows that fit each other, and gradients that are the gradients they are said to be."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.common.towers.adapter_placement import placement
from tessera.common.towers.qa_reader import QAReader
from tessera.common.towers.transformer import TowerSize
from tessera.server.pretraining.activations import DIRECTIONS, _ways, activations
from tessera.server.pretraining.aligned_init import STACKS
from tessera.server.pretraining.pretext_tasks import Pretext
from tessera.server.pretraining.reader_training import QuestionBatch, ReaderInputs

N, WIDTHS, PLACE = 40, (32, 64), "reader.1.mlp.c_fc"


def pretext() -> tuple[ReaderInputs, QuestionBatch]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(120, 10, generator=generator)
    image, text = (hidden @ torch.randn(10, n, generator=generator) / 3 for n in (70, 66))
    return ReaderInputs(image, text), QuestionBatch.of(Pretext.of(image, text, torch.arange(100)), N, salt=0)


def reader(width: int) -> QAReader:
    torch.manual_seed(width)
    return QAReader(TowerSize(width, 4), 70, 66).eval().requires_grad_(requires_grad=False)


def answers(one: QAReader, inputs: ReaderInputs, batch: QuestionBatch) -> Tensor:
    return normalize(inputs.answer(one, batch), dim=1)


def test_rows_are_the_same_positions_in_all_towers() -> None:
    inputs, batch = pretext()
    seen = [activations(one, placement(one, STACKS, 2)[1], inputs, batch) for one in map(reader, WIDTHS)]
    assert seen[0].keys() == seen[1].keys()
    n_rows = N + int((batch.questions.pieces[..., 0] != 0).sum())  # the instruction, and what is shown
    for width, tower in zip(WIDTHS, seen, strict=True):
        own = tower[PLACE]
        assert own.gradients is not None
        assert own.inputs.shape == (n_rows, width)
        assert own.outputs.shape == (n_rows, 4 * width)
        assert own.gradients.shape == ((1 + DIRECTIONS) * n_rows, 4 * width)


def test_pulls_tell_how_answers_move_with_the_outputs() -> None:
    inputs, batch = pretext()
    one = reader(32)
    gradients = activations(one, placement(one, STACKS, 2)[1], inputs, batch)[PLACE].gradients
    assert gradients is not None
    pulled = gradients.view(1 + DIRECTIONS, -1, gradients.shape[1]).sum(1)
    push = torch.randn(gradients.shape[1], generator=torch.Generator().manual_seed(1))
    before, bias = answers(one, inputs, batch), one.get_parameter("layers.3.mlp.c_fc.bias")
    bias += 1e-3 * push
    moved = (answers(one, inputs, batch) - before) / 1e-3
    told = torch.stack([(way * moved).sum() for way in _ways(batch)])
    torch.testing.assert_close(pulled @ push, told, rtol=0.05, atol=0.01)
