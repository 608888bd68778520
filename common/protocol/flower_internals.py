"""Uses what of Flower 1.39 is not public: its control connection, how a ServerApp's grid fetches replies, its simulation.

Flower is imported late: each process loads only what it uses.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.common.errors import TesseraError

if TYPE_CHECKING:
    from flwr.app import Message
    from flwr.serverapp import Grid


@dataclass(frozen=True)
class KnownNode:
    """A node that a server knows: its number, Flower's word for its state, and since when (ISO 8601) it is in that."""

    number: int
    state: str
    since: str


class ControlRefusal(Exception):
    """A server did not do what it was asked, or did not answer: the message says why, `code` is Flower's or 0."""

    def __init__(self, reason: str, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class ControlConnection:
    """A connection to a server's Control API, over HTTPS, which is kept between requests: what Flower's `flwr` command does.

    Whatever goes wrong is raised as `ControlRefusal`. A proxy is used where the environment names one for the address.
    """

    def __init__(self, address: str, ca: bytes) -> None:
        from flwr.supercore.control import ControlHttpClient

        self._address = address
        self._client = ControlHttpClient.from_server_address(address, False, ca, [])

    def register(self, public_key: bytes) -> int | None:
        """Let in the node with this public key (PEM); return its number, None for a key that was registered before."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        try:
            with self._explained():
                return self._client.RegisterNode(RegisterNodeRequest(public_key=public_key)).node_id
        except ControlRefusal as refusal:
            from flwr.supercore.error import ApiErrorCode  # only here: it takes FastAPI along, a third of a second

            if refusal.code == ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
                return None
            raise

    def nodes(self) -> list[KnownNode]:
        """All nodes, in the order they were registered, those too that were unregistered."""
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._explained():
            answer = self._client.ListNodes(ListNodesRequest())
        found = []
        for node in sorted(answer.nodes_info, key=lambda node: datetime.fromisoformat(node.registered_at)):
            since = {
                "online": node.last_activated_at,
                "offline": node.last_deactivated_at,
                "unregistered": node.unregistered_at,
            }
            found.append(KnownNode(node.node_id, node.status, since.get(node.status, node.registered_at)))
        return found

    def unregister(self, node: int) -> None:
        """Cut a node off, and never take its key again."""
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._explained():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node))

    def start_run(self, pyproject: bytes) -> int:
        """Start a run of the app that a pyproject.toml describes; return its number."""
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        content = app_bundle(pyproject)
        fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
        with self._explained():
            return self._client.StartRun(StartRunRequest(fab=fab)).run_id

    def run(self, run: int) -> tuple[str, str]:
        """How a run stands, like "running" or "finished:failed", and the details of a failure or ""."""
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._explained():
            status = self._client.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
        return ":".join(filter(None, (status.status, status.sub_status))), status.details

    def stop_run(self, run: int) -> None:
        """Stop a run that has not ended."""
        from flwr.proto.control_pb2 import StopRunRequest

        with self._explained():
            self._client.StopRun(StopRunRequest(run_id=run))

    def log(self, run: int) -> str:
        """What the ServerApp of a run has written so far."""
        from flwr.proto.control_pb2 import StreamLogsRequest

        with self._explained(), closing(self._client.StreamLogs(StreamLogsRequest(run_id=run))) as parts:
            return next((part.log_output for part in parts), "")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import httpx

        try:
            yield
        except httpx.TimeoutException:
            raise ControlRefusal(f"no answer from {self._address}; is the server overloaded?") from None
        except httpx.HTTPStatusError as error:
            from flwr.supercore.error import FlowerError

            if (told := FlowerError.from_json(error.response.text)) is None:
                raise ControlRefusal(f"{self._address} answers {error.response.status_code}") from None
            raise ControlRefusal(" ".join(filter(None, (told.message, told.public_details))), told.code) from None
        except httpx.HTTPError as error:
            raise ControlRefusal(f"{self._address} is unavailable ({error})") from None


def app_bundle(pyproject: bytes) -> bytes:
    """Bundle an app that is nothing but its pyproject.toml, as `flwr build` does: the same bytes for the same content."""
    manifest = f"pyproject.toml,{hashlib.sha256(pyproject).hexdigest()},{8 * len(pyproject)}"
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in (("pyproject.toml", pyproject), (".info/CONTENT", manifest)):
            bundle.writestr(zipfile.ZipInfo(name), content)  # with ZipInfo's own date, not today's
    return buffer.getvalue()


def bundle_folder(grid: Grid) -> Path:
    """Where Flower has put what the bundle of a ServerApp's app holds."""
    from flwr.common.config import get_project_dir

    return get_project_dir(grid.run.fab_id, grid.run.fab_version, grid.run.fab_hash)


def is_simulated(grid: Grid) -> bool:
    """Whether the nodes of a ServerApp's grid are simulated: they are in its own process, and no message leaves its memory."""
    from flwr.superlink.grid import InMemoryGrid

    return isinstance(grid, InMemoryGrid)


def replies(grid: Grid, messages: Sequence[str]) -> Iterator[tuple[str, Message | None]]:
    """The replies that are there to `messages`, each with the message it says it answers; None for one that cannot be read.

    A ServerApp's grid is asked for all of them at once, and hands them over one after the other, so that memory does not grow
    with the nodes. Read to the end: a server keeps nothing of what it has once announced. Any other grid is asked for one after
    the other: nodes in the same process work when they are asked.

    Raises what Flower raises where the server cannot be reached.
    """
    from flwr.superlink.grid.http_grid import HttpGrid

    looks = _announced(grid, messages) if isinstance(grid, HttpGrid) else ((message, grid) for message in messages)
    for message, look in looks:
        try:
            found = list(look.pull_messages([message]))
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
