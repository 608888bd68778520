"""Pretext questions: what they ask is there, the answer is the right one, and no label is needed."""

from functools import cache

import pytest
import torch
from torch import Tensor

from tessera.common.data.questions import NOTHING, PICTURE, TEXT, WORD, Questions
from tessera.common.errors import ConfigError
from tessera.common.towers.shared_space import SIGNS
from tessera.server.pretraining.pretext_tasks import INSTRUCTIONS, Pretext

N_ITEMS, N_PUBLIC = 400, 300


@cache
def features() -> tuple[Tensor, Tensor]:
    """Pictures and texts of items that have 10 hidden things in common."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N_ITEMS, 10, generator=generator)
    drawn = [hidden @ torch.randn(10, n, generator=generator) for n in (90, 70)]
    image, text = (part + 0.5 * torch.randn(part.shape, generator=generator) for part in drawn)
    return image, text


@cache
def world() -> Pretext:
    return Pretext.of(*features(), torch.arange(N_PUBLIC))


def asked(instruction: str, n: int = 4000) -> tuple[Questions, Tensor]:
    """The questions of one task among `n`, and the vectors of their pieces."""
    drawn = world().questions(n, salt=3)
    own = drawn.take(drawn.tasks == INSTRUCTIONS.index(instruction))
    return own, world().vector(own.pieces)


def test_all_tasks_are_asked_and_right_answers_stand_anywhere() -> None:
    drawn = world().questions(4000, salt=1)
    assert drawn.tasks.unique().tolist() == list(range(len(INSTRUCTIONS)))
    offered = (drawn.choices[..., 0] != NOTHING).sum(1)
    for n_choices in (2, 3, 4):
        shares = drawn.answers[offered == n_choices].bincount(minlength=n_choices) / (offered == n_choices).sum()
        assert (shares - 1 / n_choices).abs().max() < 0.1
    assert drawn.pieces[..., 1].max() < N_PUBLIC  # nothing about an item that is not public


def test_the_same_salt_draws_the_same_questions() -> None:
    one, again, other = (world().questions(50, salt) for salt in (1, 1, 2))
    assert torch.equal(one.pieces, again.pieces)
    assert torch.equal(one.answers, again.answers)
    assert not torch.equal(one.pieces, other.pieces)


def test_the_right_answer_is_the_one_that_the_space_gives() -> None:
    own, seen = asked("which of the two is of the same kind as the third")
    closeness = (seen[:, :2] * seen[:, 2:3]).sum(-1)
    assert torch.equal(closeness.argmax(1), own.answers)
    own, seen = asked("which of the two is more one")
    assert torch.equal((seen[:, :2] @ world().axes[0]).argmax(1), own.answers)
    own, seen = asked("which of the two is less one")
    assert torch.equal((seen[:, :2] @ world().axes[0]).argmin(1), own.answers)
    own, seen = asked("what kind of movie is it")
    assert torch.equal((world().codebook.vectors(own.choices) @ seen[:, 0, :, None])[..., 0].argmax(1), own.answers)
    own, seen = asked("which of the three is of another kind")
    closeness = (seen[:, :3, None] * seen[:, None, :3]).sum(-1).sum(-1)
    assert (closeness.argmin(1) == own.answers).float().mean() > 0.9


@pytest.mark.parametrize(("shown", "kind"), [("picture", PICTURE), ("text", TEXT)])
def test_what_belongs_together_is_of_one_item(shown: str, kind: int) -> None:
    own, _ = asked(f"which text belongs to the {shown}")
    assert (own.pieces[:, 0, 0] == kind).all()
    right = own.choices[torch.arange(len(own)), own.answers]
    assert (right[:, 0] == TEXT).all()
    assert torch.equal(right[:, 1], own.pieces[:, 0, 1])
    own, _ = asked("does the text belong to the picture")
    assert torch.equal(own.pieces[:, 0, 1] == own.pieces[:, 1, 1], own.answers == 0)
    assert [world().codebook.names[row] for row in own.choices[0, :2, 1]] == ["yes", "no"]


def test_places_are_those_of_the_questions_that_devices_are_asked() -> None:
    own, _ = asked("describe the second")
    assert torch.equal(own.choices[torch.arange(len(own)), own.answers], own.pieces[:, 1])
    codebook = world().codebook
    assert codebook.names[: len(SIGNS)] == SIGNS
    torch.testing.assert_close(codebook.words.norm(dim=1), torch.ones(len(codebook.names)))
    compared, _ = asked("which of the two is more two")
    assert compared.choices[0].tolist()[:2] == [[WORD, 0], [WORD, 1]]


def test_too_few_items_or_features_are_refused() -> None:
    image, text = features()
    with pytest.raises(ConfigError, match="63 features"):
        Pretext.of(image[:, :63], text, torch.arange(N_PUBLIC))
    with pytest.raises(ConfigError, match="too few"):
        Pretext.of(*features(), torch.arange(20))
