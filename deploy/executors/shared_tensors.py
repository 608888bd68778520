"""Saves simulated nodes from copies: what many are sent lies on one disk once, and messages carry only its name."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from tessera.client.device_folder import shared_tensors_folder
from tessera.common.protocol.messages import unpack_task
from tessera.common.utils.atomic_files import write_tensors

if TYPE_CHECKING:
    from tessera.common.flower_internals.grid import Run


class SharedTensorGrid(Grid):
    """Flower's `grid`, between a server and simulated nodes whose folders lie side by side in `devices`.

    Tensors that come along with a task are written to the nodes' shared tensor store and taken out of the message. Whoever
    sends has by then counted their bytes: a real device would get them.
    """

    def __init__(self, grid: Grid, devices: Path) -> None:
        self.grid, self.store = grid, shared_tensors_folder(devices)
        self._round = ""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages without their tensors."""
        messages, stored = list(messages), set[str]()
        for message in (message for message in messages if "tensors" in message.content):
            name = str(message.content.config_records["task"]["tensors"])
            if name not in stored:
                self._store(name, message.content, message.metadata.group_id)
                stored.add(name)
            message.content = RecordDict({name: r for name, r in message.content.items() if name != "tensors"})
        return self.grid.push_messages(messages)

    def _store(self, name: str, content: RecordDict, round: str) -> None:
        """Write a message's tensors; those of other rounds go, since nodes keep links to what they took."""
        if round != self._round:
            for path in self.store.glob("*"):
                path.unlink()
            self._round = round
        write_tensors(self.store / f"{name}.safetensors", unpack_task(content)[1] or {})

    def set_run(self, run: "Run") -> None:
        """Set the run that messages belong to."""
        self.grid.set_run(run)

    @property
    def run(self) -> "Run":
        """The run that messages belong to."""
        return self.grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message to a node."""
        return self.grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes."""
        return self.grid.get_node_ids()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Fetch the replies to those messages that are there."""
        return self.grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages without their tensors, and wait for the replies."""
        return self.grid.send_and_receive(messages, timeout=timeout)
