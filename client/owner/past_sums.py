"""Over whom sums were read that a device was in: `sums.json` in its folder. No two of them may differ by a few people.

Item counts, products for a spectral start, steps that find what people go by, baselines and evaluations of the same views have
no noise, and are the same again where nothing has changed. Where one person came or went between two of them, the difference
is that person's history or result, under masks too. So a device remembers for each such question of which devices, with
how many people, a sum was read with its help. It is in no further one that differs from any of these by some people, but by
fewer than its policy's `people`.

It sees its own people, and of a secure sum the devices of its group with the numbers of people that they registered with.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.errors import DataError
from tessera.common.privacy.between import people_between
from tessera.common.protocol.messages import Task
from tessera.common.utils.atomic_files import PRIVATE, digest, read_json, write_bytes
from tessera.common.utils.folder_lock import waiting_for

SUMS, LOCK = "sums.json", ".sums.lock"
HERE = "here"
"""How this device is called among those of a sum."""
MOST = 200
"""Different sums that are remembered of a question, the latest."""
SHORT = 16
"""Digits of a hash that are kept."""
REPEATED = ("item_statistics", "power", "aspects", "baselines")
"""Questions that are the same whenever they are asked, of people who are the same. Products and steps are so about whatever
table: a server could ask about two that are nearly the same."""


class Whose(BaseModel):
    """Of whom a sum is: its devices with their numbers of people, and a hash of who is on this one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    devices: dict[str, int]
    here: str = ""

    @staticmethod
    def of(others: Mapping[str, int], people: int, here: str) -> "Whose":
        """Of this device, with so many people, and of `others`, by the fingerprints of their keys."""
        named = {digest(name.encode())[:SHORT]: number for name, number in others.items()}
        return Whose(devices=named | {HERE: people}, here=here)

    def among(self, fingerprints: Collection[str], here: bool) -> "Whose":
        """Of the devices with these keys alone, and of this one where it is one of them."""
        kept = {digest(name.encode())[:SHORT] for name in fingerprints} | ({HERE} if here else set())
        devices = {name: number for name, number in self.devices.items() if name in kept}
        return Whose(devices=devices, here=self.here if here else "")

    def differs(self, other: "Whose") -> int:
        """How many people came or went between two sums, at least; as many who came as went are seen here alone."""
        exchanged = self.here != other.here and self.devices.get(HERE) == other.devices.get(HERE)
        return people_between(self.devices, other.devices) + 2 * exchanged


class Question(BaseModel):
    """What was asked, as a hash of the views where it is about some, and of whom the answers were that could be read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    about: str = ""
    read: tuple[Whose, ...] = ()

    def few(self, now: Whose) -> int:
        """The fewest people by whom a sum differs from one that was read; 0 where one was of the same people."""
        return min((now.differs(one) for one in self.read), default=0)

    def with_one(self, now: Whose) -> "Question":
        """With one more sum."""
        return self if now in self.read else self.model_copy(update={"read": (*self.read, now)[-MOST:]})


class Open(BaseModel):
    """An answer under masks that is not read yet: what was asked, and of whom its sum is at most."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: str
    about: str
    whose: Whose


class PastSums(BaseModel):
    """All sums that were read with this device's help, by kind of question, and those that may be; by run, epoch and ask."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    questions: dict[str, Question] = {}
    open: dict[str, Open] = {}

    def of(self, kind: str, about: str) -> Question:
        """The sums of one question: of earlier ones about something else nothing is told by a difference."""
        known = self.questions.get(kind)
        return known if known and known.about == about else Question(about=about)

    def having_read(self, kind: str, about: str, whose: Whose) -> "PastSums":
        """With one more sum that is read."""
        return self.model_copy(update={"questions": self.questions | {kind: self.of(kind, about).with_one(whose)}})

    def having_masked(self, run: str, epoch: int, ask: int, answer: Open) -> "PastSums":
        """With one more answer of an epoch; of earlier epochs of its run none can be read any more."""
        over = [key for key in self.open if key.startswith(f"{run}/") and not key.startswith(f"{run}/{epoch}/")]
        kept = [(key, one) for key, one in self.open.items() if key not in over]
        return self.model_copy(update={"open": dict([*kept, (open_key(run, epoch, ask), answer)][-MOST:])})


def open_key(run: str, epoch: int, ask: int) -> str:
    """How an answer under masks is called."""
    return f"{run}/{epoch}/{ask}"


def asked_about(task: Task) -> str | None:
    """What a question is about beside the people; None for asks that are never the same again."""
    if task.kind in REPEATED:
        return ""
    return task.tensors[:SHORT] if task.kind == "evaluate" else None


def read_sums(folder: Path) -> PastSums:
    """What a device remembers; nothing where there is no file. Raises `DataError` for a damaged one."""
    path = folder / SUMS
    if not path.exists():
        return PastSums()
    try:
        return PastSums.model_validate(read_json(path))
    except ValidationError:
        raise DataError(f"{path} is damaged: restore it; without it this device forgets which sums it was in") from None


@contextmanager
def changing_sums(folder: Path) -> Iterator[None]:
    """Within it nobody else changes what is remembered. Raises `StorageError`."""
    with waiting_for(folder / LOCK):
        yield


def write_sums(folder: Path, sums: PastSums) -> None:
    """Write it down. Raises `StorageError`."""
    write_bytes(folder / SUMS, (sums.model_dump_json(indent=1) + "\n").encode(), PRIVATE)
