"""What a device answered and refused: `ledger.jsonl` in its folder, one line of JSON each, written before an answer is sent.

Lines are only ever added, and stay when a run ends. A line that was cut off when the device was killed is passed over, and
named. The file is the owner's: without it a device does not remember what it answered before.
"""

import json
import os
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.privacy.accounting import Release
from tessera.common.utils.encryption.growing import append_line, opened_or_none, read_lines

LEDGER = "ledger.jsonl"


class Entry(BaseModel):
    """One line: an answer, or a refusal."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    time: float
    """Seconds since 1970."""
    run: str
    catalogue: str
    """The first digits of the catalogue's hash: with the run's name, all that is known of who asks."""
    round: int
    kind: str
    bytes: int = 0
    """Of the tensors that were sent."""
    people: int = 0
    """Whom it was a sum of: on this device, or on all of a secure sum's."""
    devices: int = 1
    masked: bool = False
    """Whether it went into a secure sum."""
    clip: float = 0.0
    noise: float | None = None
    """Standard deviation of the noise on the sum that the server sees, as a multiple of the clip; None: exact."""
    shared: bool = False
    """Whether the devices of a secure sum add parts of one noise; else each person in the sum adds their own."""
    sampled: float = 1.0
    """Chance with which each person took part, drawn on the device."""
    epsilon: float | None = 0.0
    """Of all noised answers so far, at `delta`; None: unbounded. What is exact in secure sums is not counted: it has none."""
    delta: float = 1e-5
    refused: str = ""
    """For a refusal, what kind of rule it was, which is all that the server hears."""
    reason: str = ""
    """For a refusal, what the rule says."""
    ask: str = ""
    """What was asked, as a hash: the same again has the same."""
    members: str = ""
    """The settings that decide who and what is counted, as a hash."""
    counts: str = ""
    """The item counts that came along, as a hash."""
    columns: int = 0
    """Columns of a product for the spectral start."""

    @property
    def exact(self) -> bool:
        """Whether something was told without noise and outside a secure sum."""
        return not self.refused and not self.masked and self.noise is None and self.kind != "select"

    def releases(self) -> list[Release]:
        """What it is for the account of epsilon."""
        return [] if self.refused or not self.noise else [Release(self.noise, self.sampled, self.shared)]


@dataclass
class RunMemory:
    """What was answered in one run."""

    members: str = ""
    counts: str = ""
    asks: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Answers by round and kind."""
    same: Counter[str] = field(default_factory=Counter)
    """Answers by what was asked."""
    versions: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Different asks by round and kind."""
    columns: int = 0
    """Columns of all its different products."""


@dataclass
class Memory:
    """What a device remembers of its ledger."""

    runs: dict[str, RunMemory] = field(default_factory=dict)
    answered: list[float] = field(default_factory=list)
    """When each answer was given."""
    refused: list[float] = field(default_factory=list)
    releases: Counter[Release] = field(default_factory=Counter)
    """The noised answers."""
    exact: int = 0
    """Answers without noise, outside secure sums."""

    def answers_since(self, moment: float) -> int:
        """How many answers were given after a moment."""
        return len(self.answered) - bisect_right(self.answered, moment)

    def refusals_since(self, moment: float) -> int:
        """How many asks were refused after a moment."""
        return len(self.refused) - bisect_right(self.refused, moment)

    def of(self, run: str) -> RunMemory:
        """What was answered in a run."""
        return self.runs.get(run) or RunMemory()

    def take(self, entry: Entry) -> None:
        """Take in one more line."""
        if entry.refused:
            self.refused.append(entry.time)
            return
        self.answered.append(entry.time)
        self.exact += entry.exact
        self.releases.update(entry.releases())
        run, place = self.runs.setdefault(entry.run, RunMemory()), (entry.round, entry.kind)
        run.members, run.counts = run.members or entry.members, run.counts or entry.counts
        run.asks[place] += 1
        if not run.same[entry.ask]:
            run.versions[place] += 1
            run.columns += entry.columns
        run.same[entry.ask] += 1


@dataclass
class Reading:
    """How far a ledger was read: up to `end` bytes of the file `file`, and the memory of what stands there."""

    file: int = 0
    end: int = 0
    memory: Memory = field(default_factory=Memory)


_readings: dict[Path, Reading] = {}
"""What this process has read so far: a ledger only grows."""


class Ledger:
    """The ledger of a device's folder."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER

    def append(self, entry: Entry) -> None:
        """Add a line, and see it on the disk before going on. Raises `StorageError`."""
        append_line(self.path, json.dumps(entry.model_dump(exclude_defaults=True), ensure_ascii=False))

    def memory(self) -> Memory:
        """What the lines say together. Only those that are new since the last time are read."""
        return self._reading().memory

    def entries(self) -> tuple[list[Entry], list[int]]:
        """All lines, and the numbers of those that cannot be read: they were cut off when the device was killed."""
        found = [_entry(line) for line in read_lines(self.path)]
        return [one for one in found if one], [number for number, one in enumerate(found, 1) if one is None]

    def content(self) -> bytes:
        """The file in clear, whether it is encrypted or not; what was cut off is left out."""
        return b"".join(line + b"\n" for line in read_lines(self.path) if line)

    def _reading(self) -> Reading:
        try:
            with self.path.open("rb") as file:
                stat = os.fstat(file.fileno())
                before = _readings.get(self.path)
                if before is None or before.file != stat.st_ino or before.end > stat.st_size:
                    before = _readings[self.path] = Reading(stat.st_ino)
                file.seek(before.end)
                complete = file.read().rpartition(b"\n")[0]
        except FileNotFoundError:
            return Reading()
        for line in complete.split(b"\n"):
            if entry := _entry(opened_or_none(self.path, line)):
                before.memory.take(entry)
        before.end += len(complete) + 1 if complete else 0
        return before


def _entry(line: bytes | None) -> Entry | None:
    try:
        return Entry.model_validate_json(line or b"")
    except ValidationError:
        return None
