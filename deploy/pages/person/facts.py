"""What the person's page says, as facts that its templates show: nothing here knows of HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tessera.client.owner.ledger import Entry
from tessera.client.owner.policy import Policy
from tessera.client.people.device import BASES, Device
from tessera.client.recommend import Recommendation
from tessera.common.errors import DataError

VIEWS = {"image": "how it looks", "text": "what is said of it", "id": "what others had with it"}
"""Views that a person knows, by name, and what they are to them."""
BECAUSE = {"image": "It looks like", "text": "It reads like", "id": "People who had"}
K = 12
KINDS = {
    "power": "directions in which people's choices differ, to begin with",
    "aspects": "sides of things that people go by, to begin with",
    "item_statistics": "how many people have each item",
    "train": "a round of training",
    "evaluate": "how good the recommendations are",
    "baselines": "how good simple recommendations would be",
    "select": "which round was the best",
}
"""Kinds of task in words."""


@dataclass(frozen=True)
class Slider:
    """A view that a person may let count more or less: its share of the scores, and the offset that they gave it."""

    view: str
    share: float
    offset: float


@dataclass(frozen=True)
class Advice:
    """What is recommended, what to say of what it is based on, and the sliders. `why` says why there is nothing."""

    items: tuple[Recommendation, ...] = ()
    note: str = ""
    why: str = ""
    sliders: tuple[Slider, ...] = ()

    @property
    def moved(self) -> bool:
        """Whether a slider was."""
        return any(slider.offset for slider in self.sliders)


def advice(device: Device, user: str) -> Advice:
    """What a device recommends to a person; why not, where it knows too little."""
    try:
        found = device.recommend(user, K)
    except DataError as error:
        return Advice(why=str(error))
    wanted, single = device.preferences(user).leaning, [view for view in VIEWS if view in found.reliance]
    whole = sum(found.reliance[view] for view in single) or 1.0
    sliders = [Slider(view, found.reliance[view] / whole, wanted.get(view, 0.0)) for view in single]
    return Advice(found.items, BASES[found.based_on], sliders=tuple(sliders) if len(single) > 1 else ())


@dataclass(frozen=True)
class Day:
    """What left the device on one day in one run: how often, bytes, in secure sums or not, refused; epsilon by its end."""

    day: str
    run: str
    answers: int
    masked: int
    refused: int
    bytes: int
    kinds: tuple[str, ...]
    epsilon: float | None
    largest: int
    """Bytes of the day on which most left, for scale."""


def timeline(entries: Sequence[Entry]) -> list[Day]:
    """The ledger day by day and run by run, the newest first."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        day = f"{datetime.fromtimestamp(entry.time, UTC):%Y-%m-%d}"
        groups.setdefault((day, entry.run), []).append(entry)
    sizes = {key: sum(one.bytes for one in group) for key, group in groups.items()}
    largest = max(sizes.values(), default=0)
    return [
        Day(
            day,
            run,
            answers=sum(not one.refused for one in group),
            masked=sum(one.masked and not one.refused for one in group),
            refused=sum(bool(one.refused) for one in group),
            bytes=sizes[day, run],
            kinds=tuple(dict.fromkeys(KINDS.get(one.kind, one.kind) for one in group if not one.refused)),
            epsilon=group[-1].epsilon,
            largest=largest,
        )
        for (day, run), group in reversed(groups.items())
    ]


@dataclass(frozen=True)
class Question:
    """A line of the policy as a switch (`number` None) or a number, and what it asks."""

    key: str
    text: str
    on: bool = False
    number: int | None = None
    values: tuple[object, object] = (False, True)
    """What the policy says where the switch is off, and on."""

    def read(self, fields: Mapping[str, str]) -> object:
        """What the policy is to say, by a form's fields; a number is checked where the policy is."""
        if self.number is None:
            return self.values[self.key in fields]
        return int(text) if (text := fields.get(self.key, "")).isdecimal() else text


def questions(policy: Policy) -> list[Question]:
    """The lines that a page asks for; the others are for `tessera device policy`."""
    secure = policy.secure == "required"
    return [
        Question("secure", "Answer in secure sums alone, in which nobody's part can be seen", secure,
                 values=("preferred", "required")),
        Question("people", "Fewest people in a sum", number=policy.people),
        Question("devices", "Fewest devices in a secure sum", number=policy.devices),
        Question("adapters", "Let adapters of this device's own model be sent (they are no sum)", policy.adapters),
        Question("cold_users", "Let a server leave people out of a sum (which tells them apart by difference)",
                 policy.cold_users),
        Question("max_asks_per_day", "Most answers in a day", number=policy.max_asks_per_day),
    ]  # fmt: skip
