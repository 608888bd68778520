"""What a person asks of their recommendations: views to count more or less, and items never to be shown again.

preferences.json    by person: `leaning`, an offset to the router's logit of a view, and `hidden`, the ids of items

They change what this person is shown and nothing else: no training reads them, and nothing of them leaves the device.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tessera.common.errors import DamagedError, DataError
from tessera.common.utils.atomic_files import PRIVATE, read_bytes, write_bytes

PREFERENCES = "preferences.json"
LOCK = ".preferences.lock"
FARTHEST = 3.0
"""Largest offset, up or down: a view then counts twenty times as much, or a twentieth."""


class Preferences(BaseModel):
    """One person's. An offset x lets a view count e^x times as much beside the others as the router alone would let it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    leaning: dict[str, Annotated[float, Field(ge=-FARTHEST, le=FARTHEST)]] = {}
    hidden: tuple[str, ...] = ()

    def leaning_to(self, view: str, offset: float) -> "Preferences":
        """The same with another offset for a view; 0 forgets it. Raises `DataError` for one that is too large."""
        if not abs(offset) <= FARTHEST:
            raise DataError(f"an offset of {offset:g} for {view!r} is too large: from -{FARTHEST:g} to {FARTHEST:g}")
        others = {name: value for name, value in self.leaning.items() if name != view}
        return self.model_copy(update={"leaning": others | ({view: offset} if offset else {})})

    def hiding(self, item: str, hidden: bool) -> "Preferences":
        """The same with an item hidden, or shown again."""
        others = tuple(one for one in self.hidden if one != item)
        return self.model_copy(update={"hidden": (*others, item) if hidden else others})


_FILE = TypeAdapter(dict[str, Preferences])


def preferences_of(folder: Path, user: str) -> Preferences:
    """What a person on the device in `folder` asks for. Raises `DamagedError` where the file cannot be read."""
    return _read(folder).get(user, Preferences())


def change_preferences(folder: Path, user: str, change: Callable[[Preferences], Preferences]) -> Preferences:
    """Replace a person's preferences by what `change` makes of them, which is returned. Raises `DamagedError`."""
    with FileLock(folder / LOCK, mode=PRIVATE, preserve_lock_file=True):
        everybody = _read(folder)
        changed = change(everybody.pop(user, Preferences()))
        if changed != Preferences():
            everybody[user] = changed
        path = folder / PREFERENCES
        if everybody:
            write_bytes(path, _FILE.dump_json(everybody, indent=1) + b"\n", PRIVATE)
        else:
            path.unlink(missing_ok=True)
        return changed


def _read(folder: Path) -> dict[str, Preferences]:
    path = folder / PREFERENCES
    if not path.exists():
        return {}
    try:
        return _FILE.validate_json(read_bytes(path))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DamagedError(
            f"{path}: {place}: {error.errors()[0]['msg']}; remove it, and nobody asks for anything"
        ) from None
