"""Which server a device goes by, and what that signed: `server-key.json` and `statements.jsonl` in its folder.

A server signs each ask with its key (`tessera.common.protocol.signed.statements`). The first key that comes is taken to be the
server's (trust on first use). From then on an ask that is signed by another key, or by none, is refused until the owner says
that the new key is right. What is signed is kept, a line each, and says nothing of the people here: two devices can put
theirs side by side, and find whether one server told them different things.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tessera.common.errors import DataError, PolicyRefused
from tessera.common.protocol.signed.keys import key_name
from tessera.common.protocol.signed.statements import Statement
from tessera.common.utils.atomic_files import PRIVATE, read_json, write_bytes
from tessera.common.utils.encryption.growing import append_line, read_lines
from tessera.common.utils.folder_lock import waiting_for

log = logging.getLogger("tessera.device")
SERVER_KEY, STATEMENTS, LOCK = "server-key.json", "statements.jsonl", ".server-key.lock"


class ServerKey(BaseModel):
    """The key of the server that a device goes by, and the last other one that came."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: Literal[1] = 1
    key: str = ""
    """In hexadecimal digits; "": none has come yet."""
    since: str = ""
    """When it was admitted, in UTC."""
    admitted: Literal["", "first use", "owner"] = ""
    offered: str = ""
    """The last key by which an ask was signed that was refused."""

    @staticmethod
    def taken(key: str, admitted: Literal["first use", "owner"]) -> "ServerKey":
        """A key that is admitted now."""
        return ServerKey(key=key, since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%SZ}", admitted=admitted)


@contextmanager
def changing_key(folder: Path) -> Iterator[None]:
    """Within it nobody else changes the key. Raises `StorageError`."""
    with waiting_for(folder / LOCK):
        yield


def read_key(folder: Path) -> ServerKey:
    """The key that a device goes by; none where there is no file. Raises `DataError` for a damaged one."""
    path = folder / SERVER_KEY
    if not path.exists():
        return ServerKey()
    try:
        return ServerKey.model_validate(read_json(path))
    except ValidationError:
        raise DataError(
            f"{path} is damaged: restore it; without it the next server's key is taken to be right"
        ) from None


def write_key(folder: Path, key: ServerKey) -> None:
    """Write it down. Raises `StorageError`."""
    write_bytes(folder / SERVER_KEY, (key.model_dump_json(indent=1) + "\n").encode(), PRIVATE)


def believe(folder: Path, came: Statement | None, asked: Statement) -> None:
    """Let an ask pass that the server signed, and keep what it signed; or raise `PolicyRefused`.

    Args:
        folder: The device's.
        came: What came along; None: nothing.
        asked: What the device finds that it is asked.
    """
    known = read_key(folder)
    if came is None and not known.key:
        return  # a server of an earlier version
    where = f"run {asked.run}, round {asked.round}, {asked.asks[-1][0]}"
    if came is None:
        raise PolicyRefused(
            "server-key", f"{where}: it is not signed, and {key_name(known.key)} signed what came before"
        )
    if not came.is_signed():
        raise PolicyRefused("statement", f"{where}: its signature by {key_name(came.key)} is wrong")
    if came.key != known.key:
        _take(folder, came.key, where)
    append_line(folder / STATEMENTS, came.write())  # a lie is kept too
    if not came.covers(asked):
        raise PolicyRefused("statement", f"{where}: {key_name(came.key)} signed something else than what came")


def _take(folder: Path, key: str, where: str) -> None:
    """Go by the first key that comes, and note another one, which is refused by `PolicyRefused`."""
    with changing_key(folder):
        known = read_key(folder)
        if not known.key:
            write_key(folder, ServerKey.taken(key, "first use"))
            return log.info("%s: the server's key is taken to be %s", where, key_name(key))
        if key == known.key:
            return None
        if key != known.offered:
            write_key(folder, known.model_copy(update={"offered": key}))
    told = f"{where}: signed by {key_name(key)}, and the server's key is {key_name(known.key)} since {known.since}. If you "
    told += f"know that it has a new one: tessera device server admit {key_name(key)} --data-dir {folder}"
    raise PolicyRefused("server-key", told)


def admit(folder: Path, name: str) -> ServerKey:
    """Go by the key that came last and was refused, which has the fingerprint `name`. Raises `DataError` for another."""
    with changing_key(folder):
        known = read_key(folder)
        if not known.offered or key_name(known.offered) != name:
            came = f"{key_name(known.offered)} has" if known.offered else "none has"
            raise DataError(f"{name} is no key of a server that came here and was refused; {came}")
        taken = ServerKey.taken(known.offered, "owner")
        write_key(folder, taken)
    return taken


def read_statements(path: Path) -> list[Statement]:
    """The statements in a file, or in a device's folder; lines that are cut off are passed over. Raises `DataError` where there
    is no file."""
    path = path / STATEMENTS if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path} is not there: no server has signed what this device was asked")
    found: dict[str, Statement] = {}
    for line in filter(None, read_lines(path)):
        try:
            statement = Statement.read(line)
        except DataError:
            continue
        found.setdefault(statement.signature, statement)
    return list(found.values())
