"""What an attack finds, and how large an audit is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from tessera.common.config.settings import Settings


@dataclass(frozen=True)
class Finding:
    """One line of an audit.

    `got` is what the attack got: % where it is a share, else a number of answers. `prior` is what anybody gets without it, and
    `limit` the most that the gate allows; None for a figure that is shown and not judged.
    """

    attack: str
    measure: str
    got: float
    prior: float | None = None
    limit: float | None = None
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the gate holds."""
        return self.limit is None or self.got <= self.limit

    def row(self) -> tuple[str, ...]:
        """The line as it is shown."""
        judged = "" if self.limit is None else "pass" if self.holds else "FAIL"
        prior, limit = ("" if value is None else f"{value:.2f}" for value in (self.prior, self.limit))
        attack = f"{self.attack} ({self.note})" if self.note else self.attack
        return attack, self.measure, f"{self.got:.2f}", prior, limit, judged


@dataclass(frozen=True)
class Size:
    """How large an audit is: people whose histories are looked for, rounds of a run, the devices among which one is hostile,
    and on how many devices those people are (0: on one each)."""

    people: int = 48
    rounds: int = 20
    nodes: int = 20
    devices: int = 0

    @property
    def on_devices(self) -> int:
        """Devices of the people whose histories are looked for."""
        return self.devices or self.people


QUICK = Size(people=32, rounds=4, nodes=8)
Attack = Callable[[Settings, Path, int, Size], Sequence[Finding]]
"""Attacks a run of these settings on the dataset in a folder, by a seed."""


def means(seeds: Sequence[Sequence[Finding]]) -> list[Finding]:
    """The findings of several seeds, line by line: gates are about means."""
    return [_mean(lines) for lines in zip(*seeds, strict=True)]


def _mean(lines: Sequence[Finding]) -> Finding:
    prior, limit = (
        [value for line in lines if (value := getattr(line, name)) is not None] for name in ("prior", "limit")
    )
    notes = "; ".join(dict.fromkeys(line.note for line in lines if line.note))
    return replace(
        lines[0],
        got=fmean(line.got for line in lines),
        prior=fmean(prior) if prior else None,
        limit=fmean(limit) if limit else None,
        note=notes,
    )
