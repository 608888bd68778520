"""Changes how a process of the server asks for messages: replies one by one, and sooner; and messages without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.common.errors import TesseraError
from tessera.common.flower_internals.compact import compacted, opened
from tessera.common.flower_internals.fleet import FIRST_BACKOFF, LONGEST_BACKOFF

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid
    from flwr.supercore.run import Run as Run


def look_sooner() -> None:
    """Have this process ask sooner again for objects of messages that are announced but not there yet."""
    from flwr.supercore.inflatable import inflatable_utils

    pull = inflatable_utils.pull_objects
    sooner = {"initial_backoff": FIRST_BACKOFF, "backoff_cap": LONGEST_BACKOFF}
    pull.__kwdefaults__ = (pull.__kwdefaults__ or {}) | sooner


def speak_as(run: int, node: int) -> Run:
    """Have messages that this process makes come from a node of a run, without a server; return the run."""
    from flwr.supercore.run import Run
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run, node
    return Run.create_empty(run_id=run)


def bundle_folder(grid: Grid) -> Path:
    """Where Flower has put what the bundle of a ServerApp's app holds."""
    from flwr.common.config import get_project_dir

    return get_project_dir(grid.run.fab_id, grid.run.fab_version, grid.run.fab_hash)


def is_simulated(grid: Grid) -> bool:
    """Whether the nodes of a ServerApp's grid are simulated: they are in its own process, and no message leaves its memory."""
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


def over_network(grid: Grid) -> bool:
    """Whether a grid asks a server. Where none does, its class is not imported to find out: that takes a second."""
    module = sys.modules.get("flwr.superlink.grid.http_grid")
    return module is not None and isinstance(grid, module.HttpGrid)


def push(grid: Grid, content: RecordDict, nodes: Sequence[int], kind: str, group: str) -> list[str]:
    """Send the same content to several nodes; return what each message is called, "" or None for one that was not taken.

    Over a network it goes `compacted`, and is answered so.
    """
    from flwr.app import Message

    form = compacted(content) if over_network(grid) else content
    return list(grid.push_messages([Message(form, node, kind, group_id=group) for node in nodes]))


def replies(grid: Grid, messages: Sequence[str]) -> Iterator[tuple[str, Message | None]]:
    """The replies that are there to `messages`, each with the message it says it answers; None for one that cannot be read.

    A ServerApp's grid is asked for all of them at once, and hands them over one after the other, so that memory does not grow
    with the nodes. Read to the end: a server keeps nothing of what it has once announced. Any other grid is asked for one after
    the other: nodes in the same process work when they are asked.

    Raises what Flower raises where the server cannot be reached.
    """
    looks = _announced(grid, messages) if over_network(grid) else ((message, grid) for message in messages)
    for message, look in looks:
        try:
            found = list(look.pull_messages([message]))
            for reply in found:
                if reply.has_content():
                    reply.content, _ = opened(reply.content)
        except TesseraError:
            raise
        except Exception:
            grid.get_node_ids()  # raises too where it is the server that cannot be reached
            yield message, None
        else:
            for reply in found:
                yield reply.metadata.reply_to_message_id, reply


def _announced(grid: Any, messages: Sequence[str]) -> Iterator[tuple[str, Grid]]:
    """Ask a server once, and for each reply that is there give the message it answers, and a grid that fetches it.

    What a server has announced it never announces again. Flower's own `pull_messages` fetches and reads all of a look, and one
    reply that cannot be read would take the others' with it.
    """
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse

    found = grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=messages))
    for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
        one = copy(grid)
        one._client = _Announcement(
            grid._runtime_client, PullAppMessagesResponse(messages_list=[message], message_object_trees=[tree])
        )
        yield message.metadata.reply_to_message_id, one


class _Announcement:
    """A grid's client that has asked for messages before, and was told of those in `found`."""

    def __init__(self, client: Any, found: Any) -> None:
        self._client, self._found = client, found

    def PullMessages(self, request: Any) -> Any:
        """What was told."""
        return self._found

    def __getattr__(self, name: str) -> Any:
        """What else the client does."""
        return getattr(self._client, name)
