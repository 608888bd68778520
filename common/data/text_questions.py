"""Holds questions in words: a prompt with choices of which one is right, or with a short answer to be written.

A file is JSON lines, one question each, which anybody can write:

    {"task": "genre", "prompt": "Which genre is Heat?", "choices": ["Crime", "Musical"], "answer": "Crime"}
    {"task": "plot", "prompt": "What is Heat about?", "choices": [], "answer": "A detective hunts a thief."}
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_bytes, write_bytes

N_CHOICES = 4
"""The most that a question offers."""


@dataclass(frozen=True)
class TextQuestions:
    """`n` questions of one or more tasks.

    `tasks` [n] int64 are indices into `names`. A question without `choices` is answered in words; otherwise its answer is one
    of them.
    """

    tasks: Tensor
    prompts: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    answers: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.prompts)

    @property
    def instructions(self) -> tuple[str, ...]:
        """What tasks are told apart by: their names."""
        return self.names

    @property
    def right(self) -> Tensor:
        """Which choice is right, [n] int64; -1 where there are none."""
        places = [
            offered.index(answer) if offered else -1 for offered, answer in zip(self.choices, self.answers, strict=True)
        ]
        return torch.tensor(places, dtype=torch.int64)

    def take(self, rows: Tensor) -> "TextQuestions":
        """Keep the questions of `rows` (indices or a mask), in that order; the tasks stay as they are."""
        kept = (rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows).tolist()
        prompts, choices, answers = (
            tuple(column[row] for row in kept) for column in (self.prompts, self.choices, self.answers)
        )
        return TextQuestions(self.tasks[rows], prompts, choices, answers, self.names)  # type: ignore[arg-type]

    @staticmethod
    def of(lines: Sequence[tuple[str, str, Sequence[str], str]]) -> "TextQuestions":
        """From (task, prompt, choices, answer); tasks are numbered as they come. Raises `DataError`."""
        for number, (_, prompt, offered, answer) in enumerate(lines, start=1):
            if not prompt.strip() or not answer.strip():
                raise DataError(f"question {number} has no prompt or no answer")
            if offered and (not 2 <= len(offered) <= N_CHOICES or len(set(offered)) < len(offered)):
                raise DataError(
                    f"question {number} offers {len(offered)} choices: offer 2 to {N_CHOICES} different ones"
                )
            if offered and answer not in offered:
                raise DataError(f"question {number}: the answer {answer!r} is not among its choices")
        names = tuple(dict.fromkeys(task for task, *_ in lines))
        tasks = torch.tensor([names.index(task) for task, *_ in lines], dtype=torch.int64)
        prompts, choices, answers = ([line[part] for line in lines] for part in (1, 2, 3))
        return TextQuestions(
            tasks, tuple(map(str, prompts)), tuple(map(tuple, choices)), tuple(map(str, answers)), names
        )

    def save(self, path: Path) -> None:
        """Write JSON lines, atomically."""
        columns = zip(self.tasks.tolist(), self.prompts, self.choices, self.answers, strict=True)
        rows = [{"task": self.names[t], "prompt": p, "choices": list(c), "answer": a} for t, p, c, a in columns]
        write_bytes(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())

    @staticmethod
    def load(path: Path) -> "TextQuestions":
        """Read JSON lines. Raises `DataError` that names the file and the line."""
        try:
            text = read_bytes(path).decode(errors="replace")
        except FileNotFoundError:
            raise DataError(f"{path} does not exist") from None
        rows = [_question(path, number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        try:
            return TextQuestions.of(rows)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None


def _question(path: Path, number: int, line: str) -> tuple[str, str, list[str], str]:
    try:
        row: dict[str, Any] = json.loads(line)
        found = row["task"], row["prompt"], row.get("choices", []), row["answer"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}, line {number}: no question with task, prompt and answer: {error}") from None
    task, prompt, choices, answer = found
    texts = [task, prompt, answer, *choices] if isinstance(choices, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}, line {number}: task, prompt and answer are texts, choices a list of texts")
    return task, prompt, choices, answer


def concatenate(parts: Sequence[TextQuestions]) -> TextQuestions:
    """Questions of several sets, one set after the other. Raises `DataError` when there is no set."""
    if not parts:
        raise DataError("there are no questions to put together")
    lines: list[tuple[str, str, Sequence[str], str]] = []
    for part in parts:
        columns = zip(part.tasks.tolist(), part.prompts, part.choices, part.answers, strict=True)
        lines += [(part.names[task], prompt, offered, answer) for task, prompt, offered, answer in columns]
    return TextQuestions.of(lines)
