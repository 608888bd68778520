"""Reads moments in settings: ISO 8601 dates and times, or numbers in the unit of the data's timestamps."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator

SECOND = 10**6


@dataclass(frozen=True)
class Instant:
    """When something begins: microseconds since 1970, or a timestamp as the data have them."""

    value: int
    unit: Literal["microseconds", "data"]


def moment(text: str) -> Instant:
    """Read a moment. Raises `ValueError` for anything else than a whole number or ISO 8601; without an offset it is UTC's."""
    if text.removeprefix("-").isdecimal():
        return Instant(int(text), "data")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is neither an ISO 8601 time, such as 2018-02-01, nor a whole number") from None
    since = (time if time.tzinfo else time.replace(tzinfo=UTC)) - datetime(1970, 1, 1, tzinfo=UTC)
    return Instant((since.days * 24 * 3600 + since.seconds) * SECOND + since.microseconds, "microseconds")


def _written(value: object) -> str:
    """YAML reads dates as such: as they were written."""
    text = value.isoformat() if isinstance(value, date) else str(value)
    moment(text)
    return text


Moment = Annotated[str, BeforeValidator(_written)]
"""A moment as it is written."""
