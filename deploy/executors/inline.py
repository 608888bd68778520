"""Runs a federation in this process, with a Flower Grid of its own: for demos, tests and one machine at full speed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from tessera.client.app import device_app
from tessera.common.errors import RunError, StorageError
from tessera.common.flower_internals.fleet import name_message
from tessera.common.flower_internals.grid import speak_as
from tessera.deploy.job import Job, Report
from tessera.server.app import serve

if TYPE_CHECKING:
    from tessera.common.flower_internals.grid import Run

SERVER_NODE = 1
CLIENT_APP_FAILED = 1


class InlineGrid(Grid):
    """Flower's Grid over the nodes of one process. An exception in a node's app becomes an error reply, as on a SuperNode."""

    def __init__(self, app: ClientApp, n_nodes: int) -> None:
        self.app = app
        self.nodes = {node + 1: {"partition-id": node, "num-partitions": n_nodes} for node in range(n_nodes)}
        self.pending: dict[str, Message] = {}
        self._run = speak_as(1, SERVER_NODE)
        self._count = 0

    def set_run(self, run: "Run") -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> "Run":
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Build a message to a node."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> list[int]:
        """All nodes; here they are always online."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages in; each is handled when its reply is asked for."""
        pushed = []
        for message in messages:
            self._count += 1
            name_message(message, name := f"inline-{self._count}")
            self.pending[name] = message
            pushed.append(name)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Handle the next of those messages and return its reply: one at a time, so memory does not grow with the nodes."""
        name = next((name for name in message_ids if name in self.pending), None)
        return [] if name is None else [self._handle(self.pending.pop(name))]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push, then pull one by one."""
        return [reply for name in self.push_messages(messages) for reply in self.pull_messages([name])]

    def _handle(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = Context(
            run_id=self._run.run_id,
            node_id=node,
            node_config=dict(self.nodes[node]),
            state=RecordDict(),
            run_config={},
        )
        try:
            return self.app(message, context)
        except StorageError:  # not one device's trouble, but this machine's
            raise
        except Exception as error:  # what a SuperNode does with any exception of its app
            return Message(Error(CLIENT_APP_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)


def execute(job: Job, report: Report) -> None:
    """Run a job in this process."""
    devices = job.devices[0].parent
    if any(folder != devices / f"node-{node}" for node, folder in enumerate(job.devices)):
        raise RunError("inline nodes are folders node-0, node-1, ... of one folder")
    grid = InlineGrid(device_app(devices), len(job.devices))
    serve(grid, job.settings, job.catalogue, job.run_dir, job.resume, report, continues=job.continues)
