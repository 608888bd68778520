"""Says all that a device knows of a person."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tessera.client.device_folder import NOTE
from tessera.client.owner.ledger import Ledger
from tessera.client.people.events import People
from tessera.client.private_state import Store
from tessera.client.recommend import Personal


class KnownEvent(BaseModel):
    """Something they had, and when, in the unit of the data."""

    model_config = ConfigDict(frozen=True)

    item: str
    title: str
    time: int


class KnownRun(BaseModel):
    """What a run learnt of them: by what they go, and how their router weighs the views, by view."""

    model_config = ConfigDict(frozen=True)

    run: str
    round: int
    """The round that is recommended by."""
    trained: bool
    """Whether there is a private state, or all comes from the history."""
    reliance: dict[str, float]
    weights: dict[str, float]


class Left(BaseModel):
    """What left the device, for all people on it."""

    model_config = ConfigDict(frozen=True)

    answers: int
    masked: int
    exact: int
    refused: int
    bytes: int


class Summary(BaseModel):
    """All that is known of a person."""

    model_config = ConfigDict(frozen=True)

    user: str
    events: tuple[KnownEvent, ...]
    runs: tuple[KnownRun, ...]
    left: Left


def summary(folder: Path, user: str) -> Summary:
    """Everything that the device in `folder` knows of a person. Raises `DataError` for a stranger."""
    events = tuple(KnownEvent(item=one.item, title=one.title, time=one.time) for one in People(folder).events(user))
    names = sorted(path.parent.name for path in (folder / "private").glob(f"*/{NOTE}"))
    entries, _ = Ledger(folder).entries()
    answers = [one for one in entries if not one.refused]
    left = Left(
        answers=len(answers),
        masked=sum(one.masked for one in answers),
        exact=sum(one.exact for one in answers),
        refused=len(entries) - len(answers),
        bytes=sum(one.bytes for one in answers),
    )
    return Summary(user=user, events=events, runs=tuple(_run(folder, name, user) for name in names), left=left)


def _run(folder: Path, name: str, user: str) -> KnownRun:
    personal = Personal.open(folder, name)
    state = Store(personal.device.private(name)).find((user,), personal.task.round + 1, 0)
    return KnownRun(
        run=name,
        round=personal.task.round,
        trained=state is not None,
        reliance=personal.reliance_of(user),
        weights=personal.weights_of(user),
    )
