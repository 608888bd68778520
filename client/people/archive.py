"""Exports a person as an open archive, and imports one on another device.

An archive is a zip of

    README.txt                      what it is, in plain words
    manifest.json                   format and version, whose it is, the catalogue's hash, the runs, each file's SHA-256
    events.csv                      item (its id), title, timestamp and, where the data mark them, part
    states/RUN/ROUND.safetensors    the person's private parameters and the optimiser's moments, after the round that is
                                    recommended by and after the last one
    refreshed/RUN.safetensors       the same after local steps since the round that is recommended by, where there were any
    preferences.json                what they ask of recommendations, where they do (`tessera.client.people.preferences`)
    ledger.jsonl, policy.yaml       what their device answered, and what it would

and is read with suspicion: nothing of it is unpacked to a path that it names, and what does not fit changes nothing.
"""

import csv
import io
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.client.device_folder import NOTE, POLICY, DeviceFolder
from tessera.client.owner.ledger import LEDGER, Ledger
from tessera.client.people.events import People, in_use
from tessera.client.people.preferences import PREFERENCES, Preferences, change_preferences, preferences_of
from tessera.client.people.refresh import Refreshed
from tessera.client.private_state import PrivateState, Store, pack_state, unpack_state
from tessera.client.run_note import Moment, RunNote
from tessera.common.errors import DataError
from tessera.common.utils.atomic_files import PRIVATE, digest, read_bytes, write_bytes

MANIFEST, EVENTS, README = "manifest.json", "events.csv", "README.txt"
REFRESHED = "refreshed/{}.safetensors"
LARGEST = 1 << 30
"""Bytes that an archive may unpack to."""
STATE = re.compile(r"states/([A-Za-z0-9][A-Za-z0-9._-]*)/(\d{1,9})\.safetensors")
REFRESHED_STATE = re.compile(r"refreshed/([A-Za-z0-9][A-Za-z0-9._-]*)\.safetensors")
TEXT = """\
This is what a device knew of one person: {user}.

events.csv         what they had, by the catalogue's item ids
states/            what models learnt about them, and nobody else has: safetensors, which many programs read
preferences.json   which views they want to count more or less, and what they do not want to see again
ledger.jsonl       what their device answered to servers, for everybody on it, and policy.yaml what it would answer
manifest.json      the format's version, which catalogue the ids are of, and a SHA-256 of each file

tessera device import FILE --data-dir DEVICE takes them in on another device.
"""


class RunFacts(BaseModel):
    """Which states of a run are in an archive: their rounds, the one recommended by, and the views that belong to it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    rounds: tuple[int, ...]
    shown: int
    tensors: str
    views: tuple[str, ...]
    refreshed: bool = False
    """Whether there is a state that was refreshed since the round that is recommended by."""


class Manifest(BaseModel):
    """What manifest.json says."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal["tessera-person"] = "tessera-person"
    version: Literal[1] = 1
    user: str
    catalogue: str
    """SHA-256 of the ids of the items in order."""
    n_items: int
    runs: dict[str, RunFacts] = {}
    files: dict[str, str] = {}


@dataclass(frozen=True)
class Imported:
    """Who came, with how many events, with the states of which runs, and why those of others stayed out."""

    user: str
    events: int
    runs: tuple[str, ...]
    left_out: dict[str, str] = field(default_factory=dict)


def export_person(folder: Path, user: str, path: Path) -> Manifest:
    """Write everything a device knows of a person to the archive `path`. Raises `DataError` for a stranger."""
    with in_use(folder):
        people = People(folder)
        people.events(user)
        files: dict[str, bytes] = {README: TEXT.format(user=user).encode(), EVENTS: _events(people, user)}
        runs: dict[str, RunFacts] = {}
        for note_path in sorted((folder / "private").glob(f"*/{NOTE}")):
            note = RunNote.read(note_path)
            rounds = []
            for round in sorted({note.shown.round, note.last.round}):
                if state := Store(note_path.parent).find((user,), round + 1, 0):
                    files[f"states/{note.run}/{round}.safetensors"] = pack_state(state)
                    rounds.append(round)
            fresh = Refreshed(DeviceFolder(folder), note.run).load(user, note.shown)
            if fresh:
                files[REFRESHED.format(note.run)] = pack_state(fresh)
            shown, views = note.shown, note.views
            runs[note.run] = RunFacts(
                rounds=tuple(rounds),
                shown=shown.round,
                tensors=shown.tensors,
                views=views,
                refreshed=fresh is not None,
            )
        if (wanted := preferences_of(folder, user)) != Preferences():
            files[PREFERENCES] = wanted.model_dump_json(indent=1).encode()
        if (folder / LEDGER).exists():
            files[LEDGER] = Ledger(folder).content()
        if (folder / POLICY).exists():
            files[POLICY] = read_bytes(folder / POLICY)
        manifest = Manifest(
            user=user,
            catalogue=people.catalogue.sha256,
            n_items=len(people.catalogue),
            runs=runs,
            files={name: digest(content) for name, content in files.items()},
        )
        files[MANIFEST] = (manifest.model_dump_json(indent=2) + "\n").encode()
        write_bytes(path, _zipped(files), PRIVATE)
        return manifest


def import_person(folder: Path, path: Path) -> Imported:
    """Take the person of an archive in: events by item id, and the states of runs that this device takes part in too.

    Raises `DataError` that names the archive and what is wrong with it, or says that the person is here already.
    """
    files = _unzipped(path)
    manifest, states = _checked(path, files)
    wanted = _preferences(path, files.get(PREFERENCES, b"{}"))
    with in_use(folder):
        people = People(folder)
        if manifest.user in people.users():
            raise DataError(f"{manifest.user!r} is on this device already ({folder})")
        rows, parts = _rows(path, files[EVENTS], manifest.user, people)
        left_out: dict[str, str] = {}
        for run, facts in manifest.runs.items():
            if why := _put(folder, run, facts, states.get(run, {})):
                left_out[run] = why
            elif facts.refreshed and (content := files.get(REFRESHED.format(run))):
                _put_refreshed(folder, run, facts, unpack_state(content, str(path)))
        people.take_in(manifest.user, rows, parts)
        change_preferences(folder, manifest.user, lambda _: wanted)
        return Imported(manifest.user, len(rows), tuple(run for run in manifest.runs if run not in left_out), left_out)


def _put(folder: Path, run: str, facts: RunFacts, states: dict[int, PrivateState]) -> str:
    """Put a run's states beside those that are here; returns why not, where they do not fit."""
    note_path = folder / "private" / run / NOTE
    if not note_path.exists():
        return "this device has not taken part in it"
    note, store = RunNote.read(note_path), Store(note_path.parent)
    if note.views != facts.views or any(store.shapes() not in (None, state.shapes()) for state in states.values()):
        return "it is of another model than here"
    for round, state in sorted(states.items()):
        store.save(store.next_block(), min(round, note.last.round), state)
    return ""


def _put_refreshed(folder: Path, run: str, facts: RunFacts, state: PrivateState) -> None:
    """Keep a refreshed state where the round that it began from is here; elsewhere it would not count."""
    note = RunNote.read(folder / "private" / run / NOTE)
    if note.shown == Moment(round=facts.shown, tensors=facts.tensors):
        Refreshed(DeviceFolder(folder), run).save(state.users[0], note.shown, state)


def _preferences(path: Path, content: bytes) -> Preferences:
    try:
        return Preferences.model_validate_json(content)
    except ValidationError as error:
        what = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{path}, {PREFERENCES}: {what}: {error.errors()[0]['msg']}") from None


def _events(people: People, user: str) -> bytes:
    frame, text = people.frame(user), io.StringIO()
    columns = ["item", "title", "timestamp", *(["part"] if "part" in frame.columns else [])]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in frame.iter_rows(named=True):
        item = people.catalogue.items[row["item"]]
        title = people.catalogue.titles[row["item"]]
        writer.writerow([item, title, row["timestamp"], *([row["part"]] if "part" in row else [])])
    return text.getvalue().encode()


def _rows(path: Path, content: bytes, user: str, people: People) -> tuple[list[tuple[str, int, int]], list[int] | None]:
    """The events of an archive, by this catalogue's indices."""
    place = {item: index for index, item in enumerate(people.catalogue.items)}
    rows, parts = [], []
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(content.decode())), 2):
            where = f"{path}, {EVENTS}, line {number}"
            if (item := row.get("item")) not in place or item is None:
                raise DataError(f"{where}: item {item!r} is not in this device's catalogue")
            rows.append((user, place[item], int(row["timestamp"])))
            parts.append(int(row.get("part") or 0))
    except (KeyError, TypeError, ValueError, csv.Error):
        raise DataError(f"{path}, {EVENTS}: a line is no event of item and timestamp") from None
    return rows, parts


def _checked(path: Path, files: dict[str, bytes]) -> tuple[Manifest, dict[str, dict[int, PrivateState]]]:
    """The manifest, and the states by run and round, all of whose hashes are right."""
    try:
        manifest = Manifest.model_validate_json(files[MANIFEST])
    except KeyError:
        raise DataError(f"{path} is no archive of a person: there is no {MANIFEST} in it") from None
    except ValidationError as error:
        what = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataError(f"{path}, {MANIFEST}: {what}: {error.errors()[0]['msg']}") from None
    for name in {*manifest.files, *files} - {MANIFEST}:
        if digest(files.get(name, b"")) != manifest.files.get(name):
            raise DataError(f"{path}, {name}: it is not what {MANIFEST} says, by its SHA-256")
    if EVENTS not in files or not manifest.user.strip():
        raise DataError(f"{path} is no archive of a person: it names nobody, or has no {EVENTS}")
    states: dict[str, dict[int, PrivateState]] = {}
    for name, content in files.items():
        match = STATE.fullmatch(name)
        if not match and not REFRESHED_STATE.fullmatch(name):
            continue
        state = unpack_state(content, f"{path}, {name}")
        if state.users != (manifest.user,):
            raise DataError(f"{path}, {name}: it is somebody else's state")
        if match:
            states.setdefault(match.group(1), {})[int(match.group(2))] = state
    return manifest, states


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _unzipped(path: Path) -> dict[str, bytes]:
    """The files of an archive by name. Raises `DataError` for one that is damaged, or unpacks to more than a gigabyte."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(one.file_size for one in archive.infolist()) > LARGEST:
                raise DataError(f"{path} unpacks to more than {LARGEST >> 20} MB")
            return {one.filename: _content(path, archive, one) for one in archive.infolist()}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except DataError:
        raise
    except Exception as error:  # zipfile raises many kinds for what is damaged, zlib's own among them
        raise DataError(f"{path} is no archive that can be read: {error}") from None


def _content(path: Path, archive: zipfile.ZipFile, one: zipfile.ZipInfo) -> bytes:
    """A file of an archive; what it claims to unpack to is not believed."""
    with archive.open(one) as file:
        content = file.read(one.file_size + 1)
    if len(content) != one.file_size:
        raise DataError(f"{path}, {one.filename}: it is not as long as it says")
    return content
