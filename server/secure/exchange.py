"""Sends the messages of secure sums that are no tasks, and takes what comes back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from tessera.common.errors import SecureSumError, TesseraError
from tessera.common.flower_internals.grid import push, replies
from tessera.common.protocol.masked.stages import Stage, StageMessage, pack_stage, unpack_stage
from tessera.common.protocol.messages import refused
from tessera.common.utils.pauses import Pauses

Take = Callable[[int, tuple[bytes, ...]], None]
"""Is given what a node replied; raises a `TesseraError` for what cannot be taken."""


@dataclass
class Exchange:
    """The way to the nodes of a run, with a limit in seconds for each stage.

    `late` are messages that were not waited for, `troubles` what went wrong since it was last looked at, node by node, and
    `bytes_down` and `bytes_up` what was sent and came.
    """

    grid: Grid
    run: str
    limit: float
    late: set[str] = field(default_factory=set)
    troubles: list[str] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0

    def ask(
        self,
        stage: Stage,
        sent: Sequence[tuple[Sequence[int], Sequence[bytes]]],
        take: Take,
        enough: Callable[[], bool] = lambda: False,
    ) -> None:
        """Send messages to nodes, and take their replies until all are in or the time is over.

        Once there are `enough`, only what has come by then is still taken.
        """
        waiting: dict[str, int] = {}
        for nodes, messages in sent:
            message = StageMessage(stage, self.run, tuple(messages))
            pushed = push(self.grid, pack_stage(message), nodes, "query", stage)
            waiting |= {name: node for name, node in zip(pushed, nodes, strict=False) if name}
            self.bytes_down += message.size * len(nodes)
        pauses, deadline = Pauses(), time.monotonic() + self.limit
        while waiting:
            heard = False
            for name, reply in replies(self.grid, list(waiting)):
                if (node := waiting.pop(name, None)) is not None:
                    heard = True
                    self._hear(stage, node, reply, take)
            if heard:
                pauses = Pauses()
            elif enough() or time.monotonic() > deadline:
                break
            else:
                pauses.wait()
        if not enough():
            self.troubles += [f"node {node} did not answer to {stage} in {self.limit:g} s" for node in waiting.values()]
        self.late |= waiting.keys()

    def _hear(self, stage: Stage, node: int, reply: Message | None, take: Take) -> None:
        try:
            message = _read(reply, node, stage)
            self.bytes_up += message.size
            take(node, message.messages)
        except TesseraError as error:
            self.troubles.append(f"node {node}, {stage}: {error}")

    def forget_late(self) -> None:
        """Drop replies to what was not waited for."""
        for name, _ in replies(self.grid, list(self.late)) if self.late else ():
            self.late.discard(name)

    def said(self) -> list[str]:
        """The troubles since this was last asked."""
        found, self.troubles = self.troubles, []
        return found

    def traffic(self) -> tuple[int, int]:
        """Bytes down and up since this was last asked."""
        found, self.bytes_down, self.bytes_up = (self.bytes_down, self.bytes_up), 0, 0
        return found


def _read(reply: Message | None, node: int, stage: Stage) -> StageMessage:
    """What a node replied. Raises `SecureSumError` where it did not, or refused."""
    if reply is None:
        raise SecureSumError("it sent what is no message")
    if reply.has_error():
        raise SecureSumError(f"it failed: {reply.error.reason}")
    if reply.metadata.src_node_id != node:
        raise SecureSumError("another node answered in its place")
    if (refusal := refused(reply.content)) is not None:
        raise SecureSumError(f"it refused: {refusal.reason}")
    return unpack_stage(reply.content, stage)
