"""A device as an app opens it: its people, what is recommended to them and why, and what their owner may do with their data.

    device = tessera.Device.open("devices/zoe")
    device.add_event("zoe", "Toy Story")
    device.recommend("zoe")

Nothing is asked of a server. What was read is kept and read again when its file has changed, so that an event which another
process adds shows at once. Threads may share a device: they take turns.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, TypeVar, overload

from tessera.client.people.events import Event, People, in_use
from tessera.client.people.items import find_item, matches
from tessera.common.data.catalogue import ITEMS
from tessera.common.errors import ConfigError, DataError
from tessera.common.utils.encryption.seam import NOTE, is_encrypted
from tessera.common.utils.folder_lock import hold_folder
from tessera.common.utils.text.html import html_table
from tessera.common.utils.text.wording import number_of

if TYPE_CHECKING:
    import polars as pl

    from tessera.client.owner.ledger import Entry
    from tessera.client.owner.policy import Policy
    from tessera.client.people.archive import Imported, Manifest
    from tessera.client.people.preferences import Preferences
    from tessera.client.people.summary import Summary
    from tessera.client.recommend import BasedOn, Explanation, Personal, Recommendation
    from tessera.common.utils.encryption.keys import Secret

T = TypeVar("T")
REASONS = {"image": "its picture", "text": "its words", "id": "the crowd", "popularity": "many had it"}
"""What a view means to a person."""
BASES = {
    "training": "",
    "history": "based on what this person had, not trained yet",
    "popularity": "based on what is popular: nothing else is known of this person yet",
}
"""What there is to say of what recommendations are made from."""
Version = tuple[tuple[str, int, int], ...]
"""Names, inodes and times of files."""
ATTEMPTS = 3
"""How often what a round of training replaces meanwhile is read again."""


@dataclass(frozen=True)
class Item:
    """An item of the catalogue: its id, and what people call it."""

    item: str
    title: str


@dataclass(frozen=True)
class Person:
    """Somebody on a device, and how many events they have."""

    user: str
    events: int


@dataclass(frozen=True)
class DeviceState:
    """How a device's folder stands: numbers of people and events, names of runs, the run of the model that was pulled, and what
    it is encrypted with: "none", "passphrase" or "key-file"."""

    people: int
    events: int
    runs: tuple[str, ...]
    pulled: str | None
    encryption: str


@dataclass(frozen=True)
class Recommendations(Sequence["Recommendation"]):
    """What is recommended to a person, the best first, and how far the person goes by each view (shares that sum to 1).

    `run` and `round` say by which state of which model; `based_on` is "training", "history" where the person has not trained
    yet, or "popularity" where nothing is known of them, and then there are no shares.
    """

    user: str
    run: str
    round: int
    based_on: "BasedOn"
    items: tuple["Recommendation", ...]
    reliance: dict[str, float]

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.items)

    @overload
    def __getitem__(self, place: int) -> "Recommendation": ...
    @overload
    def __getitem__(self, place: slice) -> Sequence["Recommendation"]: ...
    def __getitem__(self, place: int | slice) -> "Recommendation | Sequence[Recommendation]":
        """The item at a place, from 0."""
        return self.items[place]

    def frame(self) -> "pl.DataFrame":
        """The items as a table: item, title, score, view, like."""
        import polars as pl

        return pl.DataFrame([asdict(item) for item in self.items])

    def to_json(self) -> dict[str, object]:
        """All of it as an object of JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = [
            (place, one.title, one.score, REASONS.get(one.view, one.view), one.like)
            for place, one in enumerate(self.items, 1)
        ]
        notes = [BASES[self.based_on]] if BASES[self.based_on] else []
        if self.reliance:
            shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in by_share(self.reliance))
            notes.append(f"goes by: {shares}")
        title = f"for {self.user}, from the device's own files as of round {self.round}"
        return html_table(title, ("", "item", "score", "because of", "as in"), rows, "; ".join(notes))


def by_share(shares: dict[str, float]) -> list[tuple[str, float]]:
    """Views and their shares, the largest first."""
    return sorted(shares.items(), key=lambda pair: -pair[1])


class Device:
    """The device in a folder. Every method raises `tessera.DataError`, in one line, for what cannot be, and changes nothing."""

    def __init__(self, folder: Path, run: str | None = None) -> None:
        if is_encrypted(folder):
            from tessera.common.utils.encryption.vault import vault_of

            vault_of(folder)
        self.folder, self.run = folder, run
        self._owned = People(folder)
        self._personal: tuple[Version, Personal] | None = None
        self._lock = RLock()

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike[str],
        run: str | None = None,
        *,
        key_file: str | os.PathLike[str] | None = None,
        passphrase: str | None = None,
    ) -> "Device":
        """Open a device's folder; recommendations come from its newest run, or from the one called `run`.

        An encrypted folder opens with its key file or passphrase; by default with what TESSERA_KEY_FILE names or
        TESSERA_PASSPHRASE holds. The key stays in this process. Raises `DataError` where it is no device's folder, `Locked`
        without the right key.
        """
        if secret := _secret(key_file, passphrase):
            from tessera.common.utils.encryption.vault import unlock

            if not is_encrypted(Path(folder)):
                raise DataError(f"{folder} is not encrypted: open it without a key")
            unlock(Path(folder), secret)
        return cls(Path(folder), run)

    def people(self) -> tuple[Person, ...]:
        """Everybody on the device."""
        return tuple(Person(user, events) for user, events in self._owned.numbers().items())

    def events(self, user: str) -> list[Event]:
        """What a person had, the oldest first."""
        return self._owned.events(user)

    def find(self, text: str, k: int = 10) -> list[Item]:
        """At most k items whose id is `text`, or whose title has it in it, in the catalogue's order."""
        catalogue = self._owned.catalogue
        return [Item(catalogue.items[at], catalogue.title(at)) for at in matches(catalogue, text)[:k]]

    def recommend(self, user: str, k: int = 10) -> Recommendations:
        """The k best items that a person has not had, each with the view that speaks for it, by the newest round of the run.

        Milliseconds, once the first call has read the model.
        """
        if k < 1:
            raise DataError(f"k is {k}: ask for at least one item")

        def found(personal: "Personal") -> Recommendations:
            items, reliance = personal.recommend(user, k)
            task, based_on = personal.task, personal.based_on(user)
            return Recommendations(user, task.run, task.round, based_on, tuple(items), reliance)

        return self._by(found)

    def explain(self, user: str, item: str) -> "Explanation":
        """What speaks for an item and against it, for a person; by its id, its title, or a part that only one title has."""
        return self._by(lambda personal: personal.explain(user, find_item(personal.device.catalogue(), item)))

    def picture(self, item: str) -> Path | None:
        """The small picture that came with the published model of the item with this id; None where none did."""
        from tessera.client.published.small_pictures import SmallPictures  # which imports torch

        return SmallPictures(self.folder).files.get(item)

    def show(self, user: str) -> "Summary":
        """All that the device knows of a person: events, what each run learnt of them, what left the device."""
        from tessera.client.people.summary import summary

        with self._lock:
            return summary(self.folder, user)

    def add_person(self, user: str) -> None:
        """Take in a person who has no event yet."""
        self._owned.add_person(user)

    def add_event(self, user: str, item: str, at: int | None = None) -> Event:
        """Note that a person had an item, now or `at` a time, in the unit of the data. The next recommendations know it."""
        return self._owned.add_event(user, item, at)

    def import_events(self, file: str | os.PathLike[str], user: str | None = None) -> int:
        """Add the events of a CSV with the columns user, item and, if there are times, timestamp; return how many were new.

        With `user` all are this person's. All are added, or none.
        """
        return self._owned.import_events(Path(file), user)

    def correct(self, user: str, item: str, instead: str | None = None) -> None:
        """Take an event back, or say that it was of another item. What was added into past sums stays there."""
        self._owned.correct(user, item, instead)
        from tessera.client.people.refresh import drop_refreshed

        drop_refreshed(self.folder, user)  # it has learnt from the event that was taken back

    def refresh(self, user: str, steps: int | None = None) -> None:
        """Teach a person's own state what they did since it was trained, by a few local steps; nothing leaves the device.

        It counts for recommendations until these come from another round of the run. Models that read the history (`history`,
        `fcf`) know a new event without it, and then better; the others only leave it out of the list. Raises `DataError` for
        somebody without any event.
        """
        from tessera.client.people.refresh import STEPS

        if steps is not None and steps < 1:
            raise DataError(f"steps is {steps}: take at least one")
        with in_use(self.folder):
            self._by(lambda personal: personal.refresh(user, steps or STEPS))

    def preferences(self, user: str) -> "Preferences":
        """What a person asks of recommendations: `leaning`, offsets by view, and `hidden`, ids of items."""
        from tessera.client.people.preferences import preferences_of

        self._owned.events(user)
        return preferences_of(self.folder, user)

    def lean(self, user: str, view: str, offset: float) -> "Preferences":
        """Let a view count e^offset times as much in what a person is shown; 0 is as was learnt. At most 3 up or down. No
        training reads it, and it does not leave the device but in an archive."""
        views = self._by(lambda personal: personal.task.views)
        if view not in views:
            raise DataError(f"there is no view {view!r}; there are {', '.join(views)}")
        return self._prefer(user, lambda before: before.leaning_to(view, offset))

    def hide(self, user: str, item: str, hidden: bool = True) -> "Preferences":
        """Never recommend an item to a person again, or, with `hidden` false, do; by its id, its title, or a part of it."""
        found = self._owned.catalogue.items[find_item(self._owned.catalogue, item)]
        return self._prefer(user, lambda before: before.hiding(found, hidden))

    def _prefer(self, user: str, change: "Callable[[Preferences], Preferences]") -> "Preferences":
        from tessera.client.people.preferences import change_preferences

        self._owned.events(user)
        return change_preferences(self.folder, user, change)

    def export(self, user: str, file: str | os.PathLike[str]) -> "Manifest":
        """Write all that the device knows of a person to an open archive (docs/people.md), which another device can import."""
        from tessera.client.people.archive import export_person

        return export_person(self.folder, user, Path(file))

    def import_(self, file: str | os.PathLike[str]) -> "Imported":
        """Take in a person from an archive: their events, and what the runs learnt that this device takes part in."""
        from tessera.client.people.archive import import_person

        return import_person(self.folder, Path(file))

    def forget(self, user: str) -> None:
        """Remove a person from all files of the device. What was added into past sums cannot be taken out of these."""
        from tessera.client.people.forget import forget

        with self._lock:
            self._personal = None  # what is in memory goes too
            forget(self.folder, user)

    def status(self) -> "DeviceState":
        """How the folder stands."""
        from tessera.client.published.model import held_model

        numbers, model = self._owned.numbers(), held_model(self.folder)
        runs = sorted(path.parent.name for path in (self.folder / "private").glob("*/run.json"))
        pulled = model.run if model else None
        return DeviceState(len(numbers), sum(numbers.values()), tuple(runs), pulled, self.encryption)

    @property
    def encryption(self) -> str:
        """ "none", or what the folder is encrypted with: "passphrase" or "key-file"."""
        if not is_encrypted(self.folder):
            return "none"
        from tessera.common.utils.encryption.keys import Note

        return Note.read(self.folder / NOTE).kind

    def encrypt(self, *, key_file: str | os.PathLike[str] | None = None, passphrase: str | None = None) -> int:
        """Encrypt all private files of the folder, and each that is written from now on; return how many there are.

        Killed half-way, the folder opens with the same key, and the same call completes it. Who loses the key has lost the
        files. Raises `ConfigError` without a key, and `RunError` while the device takes part in a federation.
        """
        from tessera.common.utils.encryption.vault import encrypt

        if (secret := _secret(key_file, passphrase)) is None:
            raise ConfigError("encrypt: pass a key file or a passphrase")
        if (self.folder / "questions").exists():
            raise DataError(f"{self.folder} is of a device that answers questions: these cannot be encrypted yet")
        with hold_folder(self.folder), in_use(self.folder), self._lock:
            return encrypt(self.folder, secret)

    def decrypt(self) -> int:
        """Write all private files in clear again; return how many there are. Killed half-way, the same call completes it."""
        from tessera.common.utils.encryption.vault import decrypt

        with hold_folder(self.folder), in_use(self.folder), self._lock:
            return decrypt(self.folder)

    @property
    def policy(self) -> "Policy":
        """What the device answers to servers."""
        from tessera.client.owner.policy import read_policy

        return read_policy(self.folder)

    def ledger(self) -> "list[Entry]":
        """What it answered and refused, the oldest first."""
        from tessera.client.owner.ledger import Ledger

        return Ledger(self.folder).entries()[0]

    def _by(self, work: Callable[["Personal"], T]) -> T:
        """What `work` makes of the run as it stands. A round of training may replace files while they are read: then again."""
        with self._lock:
            for attempt in range(1, ATTEMPTS + 1):
                version = self._version()
                try:
                    return work(self._opened(version))
                except DataError:
                    if attempt == ATTEMPTS or version == self._version():
                        raise
        raise AssertionError("the last attempt returns or raises")

    def _opened(self, version: Version) -> "Personal":
        from tessera.client.recommend import Personal  # only here: an event is added without torch

        if self._personal is None or self._personal[0] != version:
            self._personal = version, Personal.open(self.folder, self.run)
        return self._personal[1]

    def _version(self) -> Version:
        """What tells the models that are here now from those of another moment: notes of runs, what was pulled, the items."""
        found = []
        notes = (self.folder / "private").glob(f"{self.run or '*'}/run.json")
        for path in (*notes, self.folder / "published" / "manifest.json", self.folder / ITEMS):
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((str(path), stat.st_ino, stat.st_mtime_ns))
        return tuple(sorted(found))

    def __repr__(self) -> str:
        return f"Device({str(self.folder)!r}, {number_of(len(self.people()), 'person', 'people')})"

    def _repr_html_(self) -> str:
        rows = [(person.user, person.events) for person in self.people()]
        return html_table(f"the device in {self.folder}", ("person", "events"), rows)


def _secret(key_file: str | os.PathLike[str] | None, passphrase: str | None) -> "Secret | None":
    """What was given to open a folder with. Raises `ConfigError` where that cannot be, or both were."""
    if key_file is None and passphrase is None:
        return None
    from tessera.common.utils.encryption.keys import Secret

    if key_file is not None and passphrase is not None:
        raise ConfigError("pass a key file or a passphrase, not both")
    if key_file is not None:
        return Secret.key_file(Path(key_file))
    return Secret.passphrase(passphrase) if passphrase is not None else None
