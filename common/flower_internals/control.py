"""Asks a server's Control API, as Flower's `flwr` command does."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufRequestContext
    from httpx import Response


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


class _OneRequestAConnection:
    """Has connections closed after each request: a server that ends waits up to 30 s for whoever keeps one and is idle."""

    def intercept(
        self, context: ProtobufRequestContext, call_next: Callable[[ProtobufRequestContext], Response]
    ) -> Response:
        """Send a request as the next in the line does."""
        context.request.headers["connection"] = "close"
        return call_next(context)


class ControlClient:
    """Asks one server over HTTPS.

    Whatever goes wrong is raised as `ControlRefusal`. A proxy is used where the environment names one for the address.
    """

    def __init__(self, address: str, ca: bytes) -> None:
        from flwr.supercore.control import ControlHttpClient

        self._address = address
        self._client = ControlHttpClient.from_server_address(address, False, ca, [_OneRequestAConnection()])

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

    def start_run(self, bundle: bytes) -> int:
        """Start a run of an app, bundled as `flwr build` does (see `app_bundle`); return its number."""
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.proto.fab_pb2 import Fab

        fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
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
