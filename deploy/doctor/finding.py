"""Says what a check found, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much a finding matters."""

    ok = "ok"
    warning = "warning"
    problem = "problem"


@dataclass(frozen=True)
class Finding:
    """What was found of `topic`; `remedy` says what to do, and is "" only where nothing need be done."""

    level: Level
    topic: str
    found: str
    remedy: str = ""


def ok(topic: str, found: str) -> Finding:
    """Nothing need be done."""
    return Finding(Level.ok, topic, found)


def warning(topic: str, found: str, remedy: str) -> Finding:
    """It works, but not for long, not for all, or not as safely as it should."""
    return Finding(Level.warning, topic, found, remedy)


def problem(topic: str, found: str, remedy: str) -> Finding:
    """It does not work as it is."""
    return Finding(Level.problem, topic, found, remedy)
