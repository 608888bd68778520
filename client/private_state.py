"""Keeps private state on the device's disk: written atomically, one file a block of users and round.

A block is no more than the people who were computed together when its file was written: everybody is found by id, wherever
they lie, so that people come and go between any two rounds. A round's state is kept as long as the server has a checkpoint
that belongs to it, so a resumed run finds the private state of the very round it goes back to. A damaged state is set aside as
*.corrupt, and nobody starts afresh in its place.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tessera.common.errors import DamagedError, DataError
from tessera.common.utils.atomic_files import (
    PRIVATE,
    pack_tensors,
    read_metadata,
    read_tensors,
    sweep,
    unpack_tensors,
    write_tensors,
)

log = logging.getLogger("tessera.device")
CORRUPT = ".corrupt"
Version = tuple[tuple[str, int, int], ...]
"""Names, inodes and times of files."""
_NAME = re.compile(r"round-(\d{6})\.safetensors")


@dataclass(frozen=True)
class PrivateState:
    """What describes people and never leaves their device, stacked over users: [n_users, ...] each.

    `parameters` are the router's and the backbone's, `optimizer` the local optimiser's moments.
    """

    users: tuple[str, ...]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def shapes(self) -> dict[str, torch.Size]:
        """Shape of one user's part of each tensor."""
        return {name: value.shape[1:] for name, value in (self.parameters | self.optimizer).items()}

    def take(self, rows: Tensor) -> "PrivateState":
        """The state of a selection of users."""
        users = tuple(self.users[row] for row in rows.tolist())
        return PrivateState(users, _rows(self.parameters, rows), _rows(self.optimizer, rows))

    def of(self, users: Sequence[str]) -> "PrivateState":
        """The states of those of `users` who have one here, in that order."""
        place = {user: row for row, user in enumerate(self.users)}
        rows = [place[user] for user in users if user in place]
        return self if rows == list(range(len(self.users))) else self.take(torch.tensor(rows))

    def put(self, rows: Tensor, moved: "PrivateState") -> "PrivateState":
        """Replace the rows of users who took part."""
        return PrivateState(
            self.users,
            {name: value.index_copy(0, rows, moved.parameters[name]) for name, value in self.parameters.items()},
            {name: value.index_copy(0, rows, moved.optimizer[name]) for name, value in self.optimizer.items()},
        )

    def to(self, device: torch.device) -> "PrivateState":
        """Move every tensor."""
        return PrivateState(
            self.users,
            {name: value.to(device) for name, value in self.parameters.items()},
            {name: value.to(device) for name, value in self.optimizer.items()},
        )


def together(people: Sequence[PrivateState]) -> PrivateState:
    """Stack the states of people who trained apart."""
    return PrivateState(
        tuple(user for one in people for user in one.users),
        {name: torch.cat([one.parameters[name] for one in people]) for name in people[0].parameters},
        {name: torch.cat([one.optimizer[name] for one in people]) for name in people[0].optimizer},
    )


def _rows(tensors: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {name: value.index_select(0, rows) for name, value in tensors.items()}


class Store:
    """The private states of one run on one device, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, block: int, before: int) -> PrivateState | None:
        """Read block `block` as the newest round below `before` left it; None when it never trained.

        A damaged file is set aside, and the round before it taken up. Raises `DataError` when that leaves none: whether these
        people are to start afresh is for the device's owner to say.
        """
        for round in reversed([round for round in self._rounds(block) if round < before]):
            if kept := _whole(self._path(block, round)):
                return kept
        if damaged := [round for round in self._rounds(block, CORRUPT) if round < before]:
            path = self._path(block, max(damaged))
            raise DataError(_none_left(path.with_name(path.name + CORRUPT)))
        return None

    def find(self, users: Sequence[str], before: int, block: int) -> PrivateState | None:
        """Read each user's state as the newest round below `before` left it, those of `users` who have one, in that order.

        None where nobody has. `block` is where they are looked for first: they mostly still are where they were. Damaged files
        are set aside as in `load`, and raise `DataError` where somebody's state may have been in one and is nowhere else.
        """
        missing, found = set(users), []
        for path in self._newest_first(before, block):
            if not _may_hold(path, missing) or (kept := _whole(path)) is None:
                continue
            rows = [row for row, user in enumerate(kept.users) if user in missing]
            if rows:
                found.append(kept if len(rows) == len(kept.users) else kept.take(torch.tensor(rows)))
                missing -= set(found[-1].users)
            if not missing:
                break
        if missing and (damaged := self._files(before, CORRUPT)):
            raise DataError(_none_left(damaged[0][2]))
        if not found:
            return None
        if any(one.shapes() != found[0].shapes() for one in found):
            raise DataError(f"{self.folder} holds private states of different models; start a new run")
        return (together(found) if len(found) > 1 else found[0]).of(users)

    def save(self, block: int, round: int, state: PrivateState) -> None:
        """Write block `block` as `round` left it."""
        write_state(self._path(block, round), state)

    def tidy(self, round: int, durable: Sequence[int]) -> None:
        """Drop what no resumed run can ask for, once all blocks are as `round` left them.

        A run can go back to any of the rounds in `durable`, and finds there everybody's newest state that is not newer. Rounds
        above this one are of a run that was killed and has been taken up again at an earlier round.
        """
        files, needed = self._files(), set()
        held = {path: _held(path) for _, _, path in files}
        for last in {*durable, round}:
            seen: set[str] = set()
            for path in (path for saved, _, path in files if saved <= last):
                if not held[path] <= seen:
                    needed.add(path)
                seen |= held[path]
        for saved, _, path in files:
            if saved > round or path not in needed:
                path.unlink()
        for folder in {path.parent for _, _, path in files}:
            sweep(folder)
            with suppress(OSError):  # there are files in it
                folder.rmdir()

    def forget(self, user: str) -> None:
        """Take a person out of all files; those that cannot be read go, since they may be in them."""
        for _, _, path in self._files():
            if (kept := _whole(path)) is None or user not in kept.users:
                continue
            others = [row for row, one in enumerate(kept.users) if one != user]
            if others:
                write_state(path, kept.take(torch.tensor(others)))
            else:
                path.unlink()
        for _, _, path in self._files(suffix=CORRUPT):
            path.unlink()
        for folder in self.folder.glob("block-*"):
            sweep(folder)

    def version(self) -> Version:
        """What tells the files that are here now from those of another moment: each is written anew when it changes."""
        found = []
        for path in (*self.folder.glob("block-*/round-*"), *self.folder.glob("refreshed/*")):
            with suppress(FileNotFoundError):  # another process has just dropped it
                stat = path.stat()
                found.append((str(path), stat.st_ino, stat.st_mtime_ns))
        return tuple(sorted(found))

    def next_block(self) -> int:
        """The number of a block that is not there yet."""
        return max((block for _, block, _ in self._files()), default=-1) + 1

    def shapes(self) -> dict[str, torch.Size] | None:
        """Shape of one person's part of each tensor in the newest file; None where there is none."""
        newest = [kept for _, _, path in self._files()[:1] if (kept := _whole(path))]
        return newest[0].shapes() if newest else None

    def _newest_first(self, before: int, block: int) -> Iterator[Path]:
        """All files of rounds below `before`; of a round that of `block` first. None are listed to give that of the last round,
        which mostly has whoever is looked for."""
        latest = self._path(block, before - 1)
        if latest.is_file():
            yield latest
        for _, _, path in sorted(self._files(before), key=lambda one: (-one[0], one[1] != block)):
            if path != latest:
                yield path

    def _files(self, before: int | None = None, suffix: str = "") -> list[tuple[int, int, Path]]:
        """Round, block and path of all files, the newest first."""
        found = []
        for path in self.folder.glob(f"block-*/round-*{suffix}"):
            match = _NAME.fullmatch(path.name.removesuffix(suffix)) if path.name.endswith(suffix) else None
            if match and (before is None or int(match.group(1)) < before):
                found.append((int(match.group(1)), int(path.parent.name.removeprefix("block-")), path))
        return sorted(found, reverse=True)

    def _rounds(self, block: int, suffix: str = "") -> list[int]:
        names = (path.name for path in self._block(block).glob("round-*") if path.name.endswith(suffix))
        matches = (_NAME.fullmatch(name.removesuffix(suffix)) for name in names)
        return sorted(int(match.group(1)) for match in matches if match)

    def _block(self, block: int) -> Path:
        return self.folder / f"block-{block:04d}"

    def _path(self, block: int, round: int) -> Path:
        return self._block(block) / f"round-{round:06d}.safetensors"


def _whole(path: Path) -> PrivateState | None:
    """Read a file; set it aside, and return None, where it is damaged."""
    try:
        return read_state(path)
    except DamagedError as error:
        path.replace(path.with_name(path.name + CORRUPT))
        log.warning("%s: it is set aside as *%s, for the state of an earlier round", error, CORRUPT)
        return None


def _held(path: Path) -> set[str]:
    """Whose states a file holds; of a damaged one nobody can tell, which is somebody of its own."""
    try:
        return set(_users(path, read_metadata(path)))
    except DataError:
        return {str(path)}


def _may_hold(path: Path, users: set[str]) -> bool:
    """Whether anybody's of `users` may be in a file, as in a damaged one it may."""
    held = _held(path)
    return str(path) in held or not held.isdisjoint(users)


def _none_left(path: Path) -> str:
    return (
        f"{path} is damaged and no earlier state is left: restore the device's folder from a backup, or remove the *{CORRUPT} "
        "files beside it to let these people start afresh"
    )


def _users(source: str | Path, metadata: dict[str, str]) -> tuple[str, ...]:
    """Whose states a file holds. Raises `DataError`."""
    try:
        return tuple(map(str, json.loads(metadata["users"])))
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{source} does not say whose state it is; it was not written by Tessera") from None


def write_state(path: Path, state: PrivateState) -> None:
    """Write a state as safetensors, which say whose it is. Raises `StorageError`."""
    write_tensors(path, *state_tensors(state), PRIVATE)


def pack_state(state: PrivateState) -> bytes:
    """What `write_state` writes."""
    return b"".join(pack_tensors(*state_tensors(state)))


def read_state(path: Path) -> PrivateState:
    """Read what `write_state` wrote. Raises `DamagedError`, or `DataError` for a file that was written by something else."""
    return state_of(path, *read_tensors(path))


def unpack_state(content: bytes, source: str) -> PrivateState:
    """The same of what a file that is called `source` holds."""
    return state_of(source, *unpack_tensors(content, source))


def state_tensors(state: PrivateState) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a state's file."""
    tensors = {f"parameter/{name}": value for name, value in state.parameters.items()}
    tensors |= {f"optimizer/{name}": value for name, value in state.optimizer.items()}
    return tensors, {"users": json.dumps(state.users)}


def state_of(source: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> PrivateState:
    """The state that the tensors and metadata of the file `source` are of. Raises `DataError`."""
    users = _users(source, metadata)
    groups: dict[str, dict[str, Tensor]] = {"parameter": {}, "optimizer": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        if group not in groups or value.shape[:1] != (len(users),):
            raise DataError(f"{source}: {name} is no tensor of {len(users)} people")
        groups[group][rest] = value
    return PrivateState(users, groups["parameter"], groups["optimizer"])
