"""Kills what a device's owner does (-9) at every change of a file: `python -m tests.faults.killing_commands DEVICE KEY`.

DEVICE is the folder of one that has trained, KEY a file to encrypt with. After each kill the device opens and all others on it
are as they were; the person is as before or as after, or half forgotten; and the same again ends as if nothing had been.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from tessera.client.owner.policy import read_policy, write_policy
from tessera.client.people.device import Device
from tessera.client.published.small_pictures import take_pictures
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.published import PictureList
from tessera.common.utils.encryption.seam import KEY_FILE, MAGIC
from tests.faults.killing import forked, killed_everywhere

Command = Callable[[Device], object]
WHO = "person-0"


def picture() -> bytes:
    """A small one."""
    content = BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "JPEG")
    return content.getvalue()


PICTURE = picture()
PICTURED = PictureList(rows={0: (sha256(PICTURE).hexdigest(), len(PICTURE))})


def known(folder: Path) -> dict[str, Any]:
    """Everybody's events, and what is recommended to whom has any."""
    device, found = Device(folder), {}
    for person in device.people():
        told: list[Any] = [[one.item, one.time] for one in device.events(person.user)]
        if person.events:
            told += [[one.item, one.score] for one in device.recommend(person.user, 5)]
        found[person.user] = told
    return found


def traces(folder: Path) -> list[str]:
    """Files that name the person in clear."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path) for path in paths if WHO.encode() in path.read_bytes()]


def clear(folder: Path) -> list[str]:
    """Private files that are not encrypted."""
    return [str(path) for path in (folder / "private").rglob("*") if path.is_file() and MAGIC not in path.read_bytes()]


def commands(folder: Path, key: Path) -> dict[str, Command]:
    """All that changes a device, by name; each is done as a person would who does not know whether it was done before."""
    events, archive, out = (folder.parent / name for name in ("events.csv", "other.zip", "person.zip"))
    events.write_text("user,item,timestamp\nzoe,i001,5\nperson-0,i039,7\nperson-0,i038,8\n")
    return {
        "add-person": lambda device: device.add_person("zoe"),
        "add-event": lambda device: device.add_event(WHO, "i039", at=99),
        "import-events": lambda device: device.import_events(events),
        "correct": lambda device: device.correct(WHO, device.events(WHO)[0].item, "i037"),
        "export": lambda device: device.export(WHO, out),
        "import": lambda device: device.import_(archive),
        "hide": lambda device: device.hide(WHO, "i036"),
        "lean": lambda device: device.lean(WHO, "text", 1.0),
        "policy": lambda device: write_policy(
            device.folder, read_policy(device.folder).model_copy(update={"people": 2})
        ),
        "pictures": lambda device: take_pictures(device.folder, PICTURED, lambda name, size: PICTURE),
        "refresh": lambda device: device.refresh(WHO),
        "forget": lambda device: device.forget(WHO),
        "encrypt": lambda device: device.encrypt(key_file=key),
        "decrypt": lambda device: device.decrypt(),
    }


def tried(command: Command, folder: Path) -> None:
    """Do it; that it is done already is no fault."""
    with suppress(DataError, ConfigError):
        command(Device(folder))


def kill(name: str, command: Command, start: Path, folder: Path, key: Path) -> int:
    """Kill a command at each of its changes; return how many kills there were."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(start, folder)
    before = forked(lambda: known(folder))[1]
    if name == "correct":  # the second time it would correct another event
        item = forked(lambda: Device(folder).events(WHO)[0].item)[1]
        command = partial(lambda item, device: device.correct(WHO, item, "i037"), item)
    after = forked(lambda: [tried(command, folder), known(folder)])[1][1]
    assert after is not None, f"{name} fails when nobody kills it"
    shutil.rmtree(folder)
    shutil.copytree(start, folder)
    kills = 0
    for last in killed_everywhere(folder, lambda: command(Device(folder))):
        kills = last + 1
        where = f"{name}, killed after {last} changes"
        code, found = forked(lambda: [known(folder), tried(command, folder), known(folder)])
        assert code == 0, f"{where}: the device does not open, or not when it is done again"
        found, _, again = found
        half = {WHO} if name == "forget" else set()  # events go last: until then the person is known, but by less
        for user in (before.keys() | after.keys()) - half:
            assert found.get(user) in (before.get(user), after.get(user)), (
                f"{where}: {user} is neither as before nor as after"
            )
        assert again == after, f"{where}, and done again, it ends otherwise"
        if name == "forget":
            assert not traces(folder), f"{where}, and done again, it leaves {traces(folder)}"
        if name == "encrypt":
            assert not traces(folder) + clear(folder), f"{where}, and done again, it leaves {traces(folder)}"
        shutil.rmtree(folder)
        shutil.copytree(start, folder)
    return kills


def main(start: Path, key: Path) -> None:
    """Print how often each command was killed. Fails at the first kill that matters."""
    folder, sealed = start.parent / "killed", start.parent / "sealed"
    os.environ[KEY_FILE] = str(key)
    every = commands(folder, key)
    shutil.copytree(start, sealed)
    forked(lambda: Device(sealed).encrypt(key_file=key))
    forked(lambda: (Device(start).export(WHO, folder.parent / "other.zip"), None)[1])
    without = start.parent / "without"
    shutil.copytree(start, without)
    forked(lambda: Device(without).forget(WHO))
    starts = {"decrypt": sealed, "import": without}
    kills = {name: kill(name, one, starts.get(name, start), folder, key) for name, one in every.items()}
    print(json.dumps(kills))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
