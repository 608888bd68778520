"""Keeps private state on the device's disk: written atomically, one file a block of users and round.

A round's state is kept as long as the server has a checkpoint that belongs to it, so a resumed run finds the private state
of the very round it goes back to. A damaged state is set aside as *.corrupt, and nobody starts afresh in its place.
"""

import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tessera.common.errors import DamagedError, DataError
from tessera.common.utils.atomic_files import PRIVATE, read_tensors, sweep, write_tensors

log = logging.getLogger("tessera.device")
CORRUPT = ".corrupt"
_NAME = re.compile(r"round-(\d{6})\.safetensors")


@dataclass(frozen=True)
class PrivateState:
    """What describes people and never leaves their device, stacked over users: [n_users, ...] each.

    `parameters` are the router's and the backbone's, `optimizer` the local optimiser's moments.
    """

    users: tuple[str, ...]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def take(self, rows: Tensor) -> "PrivateState":
        """The state of a selection of users."""
        users = tuple(self.users[row] for row in rows.tolist())
        return PrivateState(users, _rows(self.parameters, rows), _rows(self.optimizer, rows))

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
            path = self._path(block, round)
            try:
                return _read(path)
            except DamagedError as error:
                path.replace(path.with_name(path.name + CORRUPT))
                log.warning("%s: it is set aside as *%s, for the state of an earlier round", error, CORRUPT)
        if damaged := [round for round in self._rounds(block, CORRUPT) if round < before]:
            raise DataError(
                f"{self._path(block, max(damaged))}{CORRUPT} is damaged and no earlier state is left: restore the device's "
                f"folder from a backup, or remove the *{CORRUPT} files beside it to let these people start afresh"
            )
        return None

    def save(self, block: int, round: int, durable: Sequence[int], state: PrivateState) -> None:
        """Write block `block` as `round` left it; then drop what no resumed run can ask for.

        A run can go back to any of the rounds in `durable`, and finds there the newest state that is not newer. Rounds above
        this one are of a run that was killed and has been taken up again at an earlier round.
        """
        tensors = {f"parameter/{name}": value for name, value in state.parameters.items()}
        tensors |= {f"optimizer/{name}": value for name, value in state.optimizer.items()}
        write_tensors(self._path(block, round), tensors, {"users": json.dumps(state.users)}, PRIVATE)
        sweep(self._block(block))
        rounds = self._rounds(block)
        needed = {max((kept for kept in rounds if kept <= safe), default=round) for safe in durable} | {round}
        for other in rounds:
            if other not in needed:
                self._path(block, other).unlink()

    def _rounds(self, block: int, suffix: str = "") -> list[int]:
        names = (path.name for path in self._block(block).glob("round-*") if path.name.endswith(suffix))
        matches = (_NAME.fullmatch(name.removesuffix(suffix)) for name in names)
        return sorted(int(match.group(1)) for match in matches if match)

    def _block(self, block: int) -> Path:
        return self.folder / f"block-{block:04d}"

    def _path(self, block: int, round: int) -> Path:
        return self._block(block) / f"round-{round:06d}.safetensors"


def _read(path: Path) -> PrivateState:
    tensors, metadata = read_tensors(path)
    try:
        users = tuple(json.loads(metadata["users"]))
    except (KeyError, ValueError):
        raise DataError(f"{path} does not say whose state it is; it was not written by Tessera") from None
    groups: dict[str, dict[str, Tensor]] = {"parameter": {}, "optimizer": {}}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        groups[group][rest] = value
    return PrivateState(users, groups["parameter"], groups["optimizer"])
