"""Holds multiple-choice questions about a catalogue's items, and the vectors that their choices stand for.

A question shows some *pieces* (pictures and texts of items) with the instruction of its task, and offers *choices*: a
word, or a picture or text of an item. All choices are unit vectors in one space, so a device without any head of its own
can be asked any task. A file of questions and the codebook are public benchmark material; which questions a device
trains on is the device's own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, pad

from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_tensors, write_tensors

NOTHING, PICTURE, TEXT, WORD = range(4)
"""Kinds of a piece or choice: nothing there, an item's picture, an item's text, a row of the codebook's words."""
N_PIECES, N_CHOICES = 5, 4
"""The most that a question shows, and offers."""
TEMPERATURE = 0.1
"""Of the softmax over choices: cosines alone are too alike to learn from."""


@dataclass(frozen=True)
class Questions:
    """`n` questions of one or more tasks.

    `tasks` [n] are indices into `names` and `instructions`; `pieces` [n, n_pieces, 2] and `choices` [n, n_choices, 2] are
    pairs (kind, index), in order, filled up with (0, 0); `answers` [n] say which choice is right. All int64. Raises
    `DataError` for shapes, kinds or indices that do not fit each other.
    """

    tasks: Tensor
    pieces: Tensor
    choices: Tensor
    answers: Tensor
    names: tuple[str, ...]
    instructions: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what no reader could read."""
        tensors = (self.tasks, self.pieces, self.choices, self.answers)
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        n = len(self.tasks) if self.tasks.ndim == 1 else -1
        widths = [tensor.shape[1] if tensor.ndim == 3 else 0 for tensor in (self.pieces, self.choices)]
        if shapes != ((n,), (n, widths[0], 2), (n, widths[1], 2), (n,)) or any(t.dtype != torch.int64 for t in tensors):
            raise DataError(f"tasks, pieces, choices and answers of shapes {shapes} do not fit each other, in int64")
        if not 0 < widths[0] <= N_PIECES or not 1 < widths[1] <= N_CHOICES:
            raise DataError(
                f"questions show {widths[0]} pieces and offer {widths[1]}, not 1 to {N_PIECES} and 2 to {N_CHOICES}"
            )
        if len(self.names) != len(self.instructions) or len(set(self.names)) != len(self.names):
            raise DataError(f"{len(self.instructions)} instructions do not fit the tasks {', '.join(self.names)}")
        if n:
            self._check()

    def _check(self) -> None:
        """Refuse tasks, kinds and answers that there are not."""
        kinds = self.pieces[..., 0], self.choices[..., 0]
        offered = self.choices.gather(
            1, self.answers.clamp(0, self.choices.shape[1] - 1)[:, None, None].expand(-1, 1, 2)
        )
        wrong = {
            "task": (self.tasks < 0) | (self.tasks >= len(self.names)),
            "piece": ((kinds[0] < NOTHING) | (kinds[0] > TEXT) | (self.pieces[..., 1] < 0)).any(1),
            "choice": ((kinds[1] < NOTHING) | (kinds[1] > WORD) | (self.choices[..., 1] < 0)).any(1),
            "answer": (self.answers < 0) | (self.answers >= self.choices.shape[1]) | (offered[:, 0, 0] == NOTHING),
        }
        for what, bad in wrong.items():
            if bad.any():
                raise DataError(f"question {int(bad.int().argmax())}: there is no such {what}")

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.tasks)

    def take(self, rows: Tensor) -> "Questions":
        """Keep the questions of `rows` (indices or a mask), in that order; the tasks stay as they are."""
        tasks, pieces, choices, answers = (t[rows] for t in (self.tasks, self.pieces, self.choices, self.answers))
        return Questions(tasks, pieces, choices, answers, self.names, self.instructions)

    def save(self, path: Path) -> None:
        """Write the questions as safetensors, atomically."""
        tensors = {"tasks": self.tasks, "pieces": self.pieces, "choices": self.choices, "answers": self.answers}
        write_tensors(path, tensors, {"tasks": json.dumps(dict(zip(self.names, self.instructions, strict=True)))})

    @staticmethod
    def load(path: Path) -> "Questions":
        """Read questions. Raises `DataError` that names the file."""
        tensors, metadata = read_tensors(path)
        try:
            named: dict[str, str] = json.loads(metadata["tasks"])
            tasks, pieces, choices, answers = (tensors[name] for name in ("tasks", "pieces", "choices", "answers"))
            return Questions(tasks, pieces, choices, answers, tuple(named), tuple(named.values()))
        except (KeyError, ValueError, AttributeError) as error:
            raise DataError(f"{path} holds no questions: {error}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def concatenate(parts: Sequence[Questions]) -> Questions:
    """Questions of several sets, one set after the other; a task of the same name and instruction is one task.

    Raises `DataError` when one name has two instructions, or there is no set.
    """
    if not parts:
        raise DataError("there are no questions to put together")
    known: dict[str, str] = {}
    for part in parts:
        for name, instruction in zip(part.names, part.instructions, strict=True):
            if known.setdefault(name, instruction) != instruction:
                raise DataError(f"task {name!r} has two instructions: {known[name]!r} and {instruction!r}")
    place = {name: row for row, name in enumerate(known)}
    tasks = [torch.tensor([place[name] for name in part.names], dtype=torch.int64)[part.tasks] for part in parts]
    pieces, choices = (
        torch.cat([_widened(tensor, max(t.shape[1] for t in tensors)) for tensor in tensors])
        for tensors in ([part.pieces for part in parts], [part.choices for part in parts])
    )
    answers = torch.cat([part.answers for part in parts])
    return Questions(torch.cat(tasks), pieces, choices, answers, tuple(known), tuple(known.values()))


def _widened(pairs: Tensor, width: int) -> Tensor:
    """Fill `pairs` [n, any, 2] up with nothing, [n, width, 2]."""
    return pad(pairs, (0, 0, 0, width - pairs.shape[1]))


@dataclass(frozen=True)
class Codebook:
    """What choices stand for: unit rows `words` [n_words, dim], `image` and `text` [n_items, dim].

    `names` are the words, in the order of their rows. Raises `DataError` for shapes that do not fit each other.
    """

    words: Tensor
    image: Tensor
    text: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse shapes that do not fit each other."""
        if any(tensor.ndim != 2 for tensor in (self.words, self.image, self.text)):
            raise DataError("a codebook's words, image and text are matrices")
        if self.image.shape != self.text.shape or self.words.shape != (len(self.names), self.image.shape[1]):
            raise DataError(
                f"{len(self.names)} words, {list(self.words.shape)}, do not fit items {list(self.image.shape)}"
            )

    def vectors(self, choices: Tensor) -> Tensor:
        """The vectors of `choices` [n, n_choices, 2], [n, n_choices, dim]; zero where nothing is offered.

        Raises `DataError` for an index that there is not.
        """
        vectors = self.image.new_zeros(*choices.shape[:2], self.image.shape[1])
        for kind, table in ((PICTURE, self.image), (TEXT, self.text), (WORD, self.words)):
            where = choices[..., 0] == kind
            rows = choices[..., 1][where]
            if len(rows) and int(rows.max()) >= len(table):
                raise DataError(f"choice {int(rows.max())} of kind {kind} is not among the {len(table)} there are")
            vectors[where] = table[rows]
        return vectors

    def save(self, path: Path) -> None:
        """Write the codebook as safetensors, atomically."""
        tensors = {"words": self.words, "image": self.image, "text": self.text}
        write_tensors(path, tensors, {"words": json.dumps(self.names)})

    @staticmethod
    def load(path: Path) -> "Codebook":
        """Read a codebook. Raises `DataError` that names the file."""
        tensors, metadata = read_tensors(path)
        try:
            return Codebook(tensors["words"], tensors["image"], tensors["text"], tuple(json.loads(metadata["words"])))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} holds no codebook: {error}") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def choice_logits(answered: Tensor, offered: Tensor, choices: Tensor) -> Tensor:
    """Cosines of answers [n, dim] with the vectors `offered` [n, n_choices, dim] over the temperature, [n, n_choices].

    -inf where `choices` [n, n_choices, 2] offer nothing.
    """
    cosines = torch.einsum("nd,ncd->nc", normalize(answered, dim=1), offered)
    return (cosines / TEMPERATURE).masked_fill((choices[..., 0] == NOTHING).to(cosines.device), -torch.inf)


def divergence(known: Tensor, learning: Tensor) -> Tensor:
    """Mean KL divergence between the probabilities of logits [n, n_choices], over the choices that there are (not -inf)."""
    absent = known == -torch.inf
    apart = (known.log_softmax(1) - learning.log_softmax(1)).masked_fill(absent, 0)
    return (known.softmax(1) * apart).sum(1).mean()


def surprise(logits: Tensor, answers: Tensor) -> Tensor:
    """Cross-entropy of each question's right choice, [n], by logits [n, n_choices]."""
    return cross_entropy(logits, answers.to(logits.device), reduction="none")
