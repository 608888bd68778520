"""What a device's answers are worth: choices by cosine, absent ones never, ties at their expected value."""

import pytest
import torch
from torch.nn.functional import normalize

from tessera.client.qa_dataset import QADataset
from tessera.common.data.questions import NOTHING, PICTURE, TEXT, WORD, Codebook, Questions
from tessera.common.towers.qa_reader import QAReader
from tessera.common.towers.transformer import TowerSize

ROWS = torch.arange(3)


def small_dataset() -> tuple[QADataset, QAReader]:
    """Three questions on six items: two words, a picture against a text, and four pictures."""
    torch.manual_seed(0)
    reader = QAReader(TowerSize(32, 1), 5, 4).eval().requires_grad_(False)
    words, image, text = (normalize(torch.randn(n, 64), dim=1) for n in (2, 6, 6))
    codebook = Codebook(words, image, text, ("yes", "no"))
    nothing = [NOTHING, 0]
    choices = [
        [[WORD, 0], [WORD, 1], nothing, nothing],
        [[PICTURE, 3], [TEXT, 4], nothing, nothing],
        [[PICTURE, row] for row in range(4)],
    ]
    questions = Questions(
        torch.tensor([0, 1, 1]),
        torch.tensor([[[PICTURE, 5], [TEXT, 1]], [[TEXT, 2], nothing], [[TEXT, 3], nothing]]),
        torch.tensor(choices),
        torch.tensor([1, 0, 3]),
        ("same", "match"),
        ("are they the same", "which one fits"),
    )
    return QADataset.of(questions, codebook, reader.embed_items(torch.randn(6, 5), torch.randn(6, 4))), reader


def test_a_choice_is_scored_by_the_cosine_of_the_answer_with_its_vector() -> None:
    asked, reader = small_dataset()
    logits = asked.logits(reader, ROWS)
    answered = asked.vectors(reader, ROWS)
    for row, n_choices in enumerate((2, 2, 4)):
        wanted = [torch.cosine_similarity(answered[row], asked.offered[row, c], dim=0) for c in range(n_choices)]
        torch.testing.assert_close(logits[row, :n_choices], torch.stack(wanted) / 0.1)
        assert bool((logits[row, n_choices:] == -torch.inf).all())
    chances = logits.softmax(1)[ROWS, torch.tensor([1, 0, 3])]
    torch.testing.assert_close(asked.loss(logits, ROWS), -chances.log().mean())
    torch.testing.assert_close(asked.logits(reader, ROWS[1:2]), logits[1:2])


def test_the_same_pieces_mean_something_else_under_another_instruction() -> None:
    asked, reader = small_dataset()
    assert not torch.equal(asked.read[0], asked.read[1])
    assert not torch.allclose(
        reader(asked.read[:1], asked.questions.pieces[2:], asked.item_embeddings), asked.vectors(reader, ROWS[2:])
    )


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0.0, 1.0], 1.0), ([1.0, 0.0], 0.0), ([0.5, 0.5], 0.5)],
    ids=["right", "wrong", "tied"],
)
def test_accuracy_counts_ties_at_their_expected_value(scores: list[float], expected: float) -> None:
    asked, _ = small_dataset()
    logits = torch.tensor([[*scores, -torch.inf, -torch.inf]])
    assert float(asked.correct(logits, ROWS[:1])) == expected


def test_constant_scores_are_right_by_chance() -> None:
    asked, reader = small_dataset()
    even = asked.logits(reader, ROWS).isfinite().float().log()
    assert asked.correct(even, ROWS).tolist() == [0.5, 0.5, 0.25]
