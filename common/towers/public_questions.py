"""Holds the public questions that towers of all classes answer, so that they can learn from one another by answers alone.

CLASS/public-600.safetensors     pretext questions about the public catalogue, and what their choices stand for

They are made once, by `tessera.server.pretraining.public_questions`; server and devices have the same file.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tessera.common.config.settings import MosaicSettings
from tessera.common.data.questions import Questions
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import read_tensors, write_tensors

PARTS = ("tasks", "pieces", "choices", "answers")
SEPARATOR = "\n"


@dataclass(frozen=True)
class PublicQuestions:
    """Questions of the same names and instructions, and their choices' vectors `offered` [n, n_choices, dim]."""

    questions: Questions
    offered: Tensor

    def save(self, path: Path, made_from: str) -> None:
        """Write them, atomically, with what they were `made_from`."""
        tensors = {name: getattr(self.questions, name) for name in PARTS} | {"offered": self.offered}
        about = {"instructions": SEPARATOR.join(self.questions.instructions), "made_from": made_from}
        write_tensors(path, tensors, about)

    @staticmethod
    def load(path: Path) -> "PublicQuestions":
        """Read what `save` wrote. Raises `DataError` that names the file."""
        tensors, about = read_tensors(path)
        try:
            names = tuple(about["instructions"].split(SEPARATOR))
            tasks, pieces, choices, answers = (tensors[name] for name in PARTS)
            return PublicQuestions(Questions(tasks, pieces, choices, answers, names, names), tensors["offered"])
        except KeyError as error:
            raise DataError(f"{path} lacks {error}: it was not written by Tessera") from None


def public_path(folder: Path, mosaic: MosaicSettings) -> Path | None:
    """Where a device class keeps the public questions that a run's settings ask for; None where they ask for none."""
    asked = mosaic.distillation
    return folder / f"public-{asked.public_questions}.safetensors" if asked else None


def made_from(path: Path) -> str | None:
    """What a file of public questions was made from; None where there is no whole one."""
    try:
        return read_tensors(path)[1].get("made_from")
    except DataError:
        return None
