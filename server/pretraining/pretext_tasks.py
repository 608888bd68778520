"""Draws pretext questions: multiple-choice questions about a catalogue that need no labels, for readers to be trained on.

Axes and kinds are principal directions and k-means centres of the shared space (`tessera.common.towers.shared_space`), called
by numerals. What is more, alike or odd is read off the space; of several items drawn the most and the least are shown, because
a question whose answer hangs on a hair teaches nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tessera.common.data.questions import N_CHOICES, N_PIECES, PICTURE, TEXT, WORD, Codebook, Questions
from tessera.common.towers.shared_space import SIGNS, shared_space, signs
from tessera.common.utils import counter_rng

PLACES = SIGNS[:N_CHOICES]
YES, NO = SIGNS.index("yes"), SIGNS.index("no")
NUMERALS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
N_AXES, N_KINDS = len(NUMERALS), 24
DRAWN = 12
"""Items of which the most and the least alike are shown."""

Drawn = tuple[Tensor, Tensor, Tensor]
"""Pieces [n, n_pieces, 2], choices [n, n_choices, 2] and answers [n]."""
Draw = Callable[["Pretext", int, torch.Generator], Drawn]


@dataclass(frozen=True)
class Pretext:
    """Draws questions about the items `rows` [n_rows].

    `axes` [N_AXES, TOWER_DIM] are what it compares. The codebook's words are the signs, N_KINDS kinds, and both ends of
    every axis.
    """

    rows: Tensor
    codebook: Codebook
    axes: Tensor

    @staticmethod
    def of(image: Tensor, text: Tensor, rows: Tensor) -> "Pretext":
        """Fit the space, the axes and the kinds on the items `rows` of standardised features [n_items, n_features]."""
        space = shared_space(image, text, rows)
        both = normalize(space.image + space.text, dim=1)[rows]
        axes = torch.linalg.eigh(torch.cov(both.T)).eigenvectors[:, -N_AXES:].flip(1).T.contiguous()
        words = torch.cat([signs(), _centres(both), axes, -axes])
        names = [*SIGNS, *(f"kind {kind}" for kind in range(N_KINDS))]
        names += [f"{end} {axis}" for end in ("much", "little") for axis in NUMERALS]
        return Pretext(rows, Codebook(words, space.image, space.text, tuple(names)), axes)

    @cached_property
    def vectors(self) -> Tensor:
        """Every piece's vector by kind and item, [3, n_items, TOWER_DIM]."""
        image, text = self.codebook.image, self.codebook.text
        return torch.stack([torch.zeros_like(image), image, text])

    def about(self, rows: Tensor) -> "Pretext":
        """The same questions about other items."""
        return Pretext(rows, self.codebook, self.axes)

    def questions(self, n: int, salt: int) -> Questions:
        """Draw `n` questions of all tasks, in random order."""
        generator = torch.Generator().manual_seed(counter_rng.key("pretext", salt) >> 1)
        weights = torch.tensor([weight for _, _, weight in TASKS])
        tasks = torch.multinomial(weights, n, replacement=True, generator=generator)
        pieces, choices = (
            torch.zeros(n, N_PIECES, 2, dtype=torch.int64),
            torch.zeros(n, N_CHOICES, 2, dtype=torch.int64),
        )
        answers = torch.zeros(n, dtype=torch.int64)
        for task, (_, draw, _) in enumerate(TASKS):
            rows = (tasks == task).nonzero()[:, 0]
            if len(rows):
                shown, offered, answers[rows] = draw(self, len(rows), generator)
                pieces[rows, : shown.shape[1]], choices[rows, : offered.shape[1]] = shown, offered
        return Questions(tasks, pieces, choices, answers, NAMES, INSTRUCTIONS)

    def draw(self, generator: torch.Generator, *shape: int) -> Tensor:
        """Pictures and texts of any items, [*shape, 2]."""
        items = self.rows[torch.randint(len(self.rows), shape, generator=generator)]
        return torch.stack([torch.randint(PICTURE, TEXT + 1, shape, generator=generator), items], dim=-1)

    def vector(self, pairs: Tensor) -> Tensor:
        """The vectors of pictures and texts [..., 2], [..., TOWER_DIM]."""
        return self.vectors[pairs[..., 0], pairs[..., 1]]


def _centres(points: Tensor) -> Tensor:
    """Spherical k-means (Dhillon and Modha 2001) of unit rows [n, dim], [N_KINDS, dim]."""
    order = counter_rng.mix(counter_rng.key("kinds"), torch.arange(len(points))).argsort()
    centres = points[order[:N_KINDS]]
    for _ in range(20):
        nearest = torch.nn.functional.one_hot((points @ centres.T).argmax(1), N_KINDS).to(points.dtype)
        centres = normalize(nearest.T @ points + 1e-6 * centres, dim=1)
    return centres


def _offer(n: int, *words: int) -> Tensor:
    """The same words as choices of `n` questions, [n, n_words, 2]."""
    return torch.tensor([(WORD, word) for word in words]).expand(n, -1, -1)


def _shuffle(pairs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put `pairs` [n, k, 2] in random order and say where the first of each went, [n]."""
    order = torch.rand(pairs.shape[:2], generator=generator).argsort(1)
    return pairs.gather(1, order[..., None].expand(-1, -1, 2)), (order == 0).int().argmax(1)


def _ranked(pretext: Pretext, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Something, [n, 1, 2], and others from the least to the most like it, [n, DRAWN, 2]."""
    one, others = pretext.draw(generator, n, 1), pretext.draw(generator, n, DRAWN)
    order = (pretext.vector(others) * pretext.vector(one)).sum(-1).argsort(1)
    return one, others.gather(1, order[..., None].expand(-1, -1, 2))


def position(place: int, pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Which of the choices stands at `place`?"""
    shown = pretext.draw(generator, n, N_CHOICES)
    offered, answers = _shuffle(shown.roll(-place, 1), generator)
    return shown, offered, answers


def retrieve(kind: int, wanted: int, pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Which picture, or text, is of the same item?"""
    items = pretext.draw(generator, n, N_CHOICES)[..., 1]
    offered, answers = _shuffle(torch.stack([torch.full_like(items, wanted), items], -1), generator)
    return torch.stack([torch.full_like(items[:, :1], kind), items[:, :1]], -1), offered, answers


def fits(pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Which of two texts belongs to the picture?"""
    items = pretext.draw(generator, n, 2)[..., 1]
    texts, answers = _shuffle(torch.stack([torch.full_like(items, TEXT), items], -1), generator)
    picture = torch.stack([torch.full_like(items[:, :1], PICTURE), items[:, :1]], -1)
    return torch.cat([picture, texts], 1), _offer(n, 0, 1), answers


def belongs(pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Does the text belong to the picture?"""
    pictures, texts, answers = pretext.draw(generator, n), pretext.draw(generator, n), torch.arange(n) % 2
    items = torch.where(answers == 0, pictures[:, 1], texts[:, 1])
    shown = [
        torch.stack([torch.full_like(items, kind), item], -1)
        for kind, item in ((PICTURE, pictures[:, 1]), (TEXT, items))
    ]
    return torch.stack(shown, 1), _offer(n, YES, NO), answers


def more(axis: int, sign: int, pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Which of two has more of an axis, or less?"""
    drawn = pretext.draw(generator, n, 4)
    order = (sign * pretext.vector(drawn) @ pretext.axes[axis]).argsort(1)[:, [3, 0]]
    shown, answers = _shuffle(drawn.gather(1, order[..., None].expand(-1, -1, 2)), generator)
    return shown, _offer(n, 0, 1), answers


def end(axis: int, pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Is there much of an axis, or little?"""
    drawn, answers = pretext.draw(generator, n, 4), torch.arange(n) % 2
    order = (pretext.vector(drawn) @ pretext.axes[axis]).argsort(1)
    place = torch.where(answers == 0, order[:, 3], order[:, 0])
    much = len(SIGNS) + N_KINDS + axis
    return drawn[torch.arange(n), place][:, None], _offer(n, much, much + N_AXES), answers


def kind(pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Which of four kinds is it?"""
    shown = pretext.draw(generator, n, 1)
    first = len(SIGNS)
    own = (pretext.vector(shown[:, 0]) @ pretext.codebook.words[first : first + N_KINDS].T).argmax(1, keepdim=True)
    others = torch.rand(n, N_KINDS - 1, generator=generator).argsort(1)[:, : N_CHOICES - 1] + 1
    words = first + torch.cat([own, (own + others) % N_KINDS], 1)
    offered, answers = _shuffle(torch.stack([torch.full_like(words, WORD), words], -1), generator)
    return shown, offered, answers


def closer(n_compared: int, pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Which of the first is most like the last?"""
    one, ranked = _ranked(pretext, n, generator)
    compared, answers = _shuffle(torch.cat([ranked[:, -1:], ranked[:, : n_compared - 1]], 1), generator)
    return torch.cat([compared, one], 1), _offer(n, *range(n_compared)), answers


def odd(n_shown: int, pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Which one is unlike the others?"""
    one, ranked = _ranked(pretext, n, generator)
    shown, answers = _shuffle(torch.cat([ranked[:, :1], ranked[:, 2 - n_shown :], one], 1), generator)
    return shown, _offer(n, *range(n_shown)), answers


def alike(pretext: Pretext, n: int, generator: torch.Generator) -> Drawn:
    """Are two alike?"""
    one, ranked = _ranked(pretext, n, generator)
    answers = torch.arange(n) % 2
    return torch.cat([one, ranked[torch.arange(n), (answers - 1) % DRAWN][:, None]], 1), _offer(n, YES, NO), answers


def _tasks() -> list[tuple[str, Draw, float]]:
    """Every pretext task's instruction, how it is drawn, and how often.

    Instructions are worded as people would ask. Early axes are asked about most: one comparison that is learnt soon brings
    the others along.
    """
    tasks: list[tuple[str, Draw, float]] = [
        ("which of the two is of the same kind as the third", partial(closer, 2), 3),
        ("which of the three is of the same kind as the fourth", partial(closer, 3), 2),
        ("which of the three is of another kind", partial(odd, 3), 3),
        ("which of the four is of another kind", partial(odd, 4), 2),
        ("are the two of the same kind", alike, 2),
        ("does the text belong to the picture", belongs, 2),
        ("which of the two texts belongs to the picture", fits, 2),
        ("what kind of movie is it", kind, 1),
    ]
    tasks += [(f"describe the {word}", partial(position, place), 0.5) for place, word in enumerate(PLACES)]
    shown = ((PICTURE, "picture"), (TEXT, "text"))
    tasks += [
        (f"which {there} belongs to the {here}", partial(retrieve, one, other), 0.5)
        for one, here in shown
        for other, there in shown
    ]
    for axis, word in enumerate(NUMERALS):
        often = 4 / (1 + axis)
        tasks += [(f"which of the two is more {word}", partial(more, axis, 1), often)]
        tasks += [(f"which of the two is less {word}", partial(more, axis, -1), often / 2)]
        tasks += [(f"is it more or less {word}", partial(end, axis), 0.2)]
    return tasks


TASKS = _tasks()
INSTRUCTIONS = tuple(instruction for instruction, _, _ in TASKS)
NAMES = tuple(f"pretext/{instruction}" for instruction in INSTRUCTIONS)
