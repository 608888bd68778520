"""Turns the messages of secure sums that are no tasks into Flower's records: keys, shares and requests to unmask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from tessera.common.config.settings import NAME
from tessera.common.errors import SecureSumError
from tessera.common.protocol.messages import PROTOCOL, check_protocol

if TYPE_CHECKING:
    from flwr.app import RecordDict

Stage = Literal["keys", "roster", "delivery", "unmask"]
"""What a device is sent: a request for keys, its group, the others' shares, or requests to unmask."""
RECORD = "secure"


@dataclass(frozen=True)
class StageMessage:
    """Messages of a stage, each as `tessera.common.secure.messages` writes it."""

    stage: Stage
    run: str
    messages: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return sum(map(len, self.messages))


def pack_stage(message: StageMessage) -> RecordDict:
    """Build a message's content, or a reply's."""
    from flwr.app import ConfigRecord, RecordDict

    record = ConfigRecord({"protocol": PROTOCOL, "stage": str(message.stage), "run": message.run})
    record["messages"] = list(message.messages)
    return RecordDict({RECORD: record})


def unpack_stage(content: RecordDict, stage: Stage | None = None) -> StageMessage:
    """Read what `pack_stage` built, of a certain stage where that is known. Raises `SecureSumError` for anything else."""
    said = dict(content.config_records[RECORD]) if RECORD in content.config_records else {}
    check_protocol(said, "the other side", "this one")
    messages, run = said.get("messages"), said.get("run")
    if said.get("stage") not in (get_args(Stage) if stage is None else (stage,)):
        raise SecureSumError(f"a message of secure sums is of no stage that is known, or of another than {stage}")
    if not isinstance(run, str) or not re.fullmatch(NAME, run):
        raise SecureSumError("a message of secure sums names a run that no server of ours would name")
    if not isinstance(messages, Sequence) or not all(isinstance(one, bytes) for one in messages):
        raise SecureSumError("a message of secure sums holds something else than bytes")
    return StageMessage(said["stage"], run, tuple(messages))  # type: ignore[arg-type]


def only(messages: Sequence[bytes]) -> bytes:
    """The message of a stage that has one. Raises `SecureSumError` where several came, or none."""
    if len(messages) != 1:
        raise SecureSumError(f"{len(messages)} messages came in place of one")
    return messages[0]
