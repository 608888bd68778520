"""Says all that a device knows of a person."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tessera.client.device_folder import NOTE
from tessera.client.optimizers import STEPS
from tessera.client.owner.ledger import Entry, Ledger
from tessera.client.people.events import People
from tessera.client.private_state import PrivateState, Store
from tessera.client.recommend import Personal
from tessera.common.utils.encryption.keys import Note
from tessera.common.utils.encryption.seam import NOTE as ENCRYPTION
from tessera.common.utils.encryption.seam import is_encrypted


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
    rounds: int | None = None
    """How many rounds the person has trained; None where their optimiser does not count."""
    since_round: int | None = None
    """The first of these, if they have trained in every round since: a round that the ledger has; None where it has none."""
    since: float | None = None
    """When that was, in seconds since 1970."""
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
    encryption: str = "none"
    """What the device's private files are encrypted with."""


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
    runs = tuple(_run(folder, name, user, answers) for name in names)
    kind = Note.read(folder / ENCRYPTION).kind if is_encrypted(folder) else "none"
    return Summary(user=user, events=events, runs=runs, left=left, encryption=kind)


def _run(folder: Path, name: str, user: str, answers: Sequence[Entry]) -> KnownRun:
    personal = Personal.open(folder, name)
    state = Store(personal.device.private(name)).find((user,), personal.task.round + 1, 0)
    rounds = _rounds(state, personal.task.settings.local.local_epochs)
    since_round, since = _since(rounds, [one for one in answers if (one.run, one.kind) == (name, "train")])
    return KnownRun(
        run=name,
        round=personal.task.round,
        trained=state is not None,
        reliance=personal.reliance_of(user),
        weights=personal.weights_of(user),
        rounds=rounds,
        since_round=since_round,
        since=since,
    )


def _rounds(state: PrivateState | None, epochs: int) -> int | None:
    """How many rounds a person has trained, by the steps that their optimiser counts."""
    steps = [
        int(value[0]) for name, value in (state.optimizer if state else {}).items() if name.startswith(f"{STEPS}.")
    ]
    return max(steps) // epochs if steps else None


def _since(rounds: int | None, answers: Sequence[Entry]) -> tuple[int | None, float | None]:
    """The round, and the time, from which on a person who has trained `rounds` rounds has, by the rounds that were answered."""
    first: dict[int, float] = {}
    for one in answers:
        first.setdefault(one.round, one.time)
    if not rounds or not first:
        return None, None
    return sorted(first.items())[-min(rounds, len(first))]
