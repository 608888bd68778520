"""Connects a node to a server over gRPC, and writes messages as they travel: Flower's Fleet API, through Flower's own code."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.app import Context, Message

log = logging.getLogger("tessera.device")
HEARTBEAT = 10
"""Seconds between two signs of life of a node, the least that Flower takes (its default is 30). A server takes a node to be
online for twice as long: so long it waits for one that was killed, and refuses it that comes back."""
RECONNECT = 3
"""Seconds, at most, between two tries to reach a server that was reached before; Flower's default is 20, gRPC's 120."""
SILENCE = 10
"""Seconds without an answer after which a connection is given up and made anew. Without that it would be left to TCP, which
tries the less often the longer a network is away: it would notice that one is back after as long again, or two minutes."""
CONNECT = 5
"""Seconds that making a connection may take."""
FIRST_BACKOFF, LONGEST_BACKOFF, PULL_SECONDS = 0.02, 1.0, 600.0
"""Seconds until an object that is announced but not there yet is asked for again, at first and at most, and until it is
given up; Flower's defaults are 1, 10 and 7200."""
APP_RAISED, APP_CRASHED = 2, 8
"""Flower's error codes for an app that raised an exception, and for one that ended without an answer."""


class RunOver(Exception):
    """The run that a message belongs to does not go on."""


@dataclass(frozen=True)
class Envelope:
    """A message as it travels: its head without the content, the tree of its objects, and their bytes by content hash.

    Head and tree are protocol buffers, objects are written as Flower writes them. Only `unpack` reads what they hold.
    """

    head: bytes
    tree: bytes
    objects: dict[str, bytes]


@dataclass(frozen=True)
class KnownRun:
    """What a node knows of a run: the context its next message is worked on in, and the run series it belongs to.

    Before the first message the run config in the context is without the defaults of the app `bundle`, a file from the server.
    Nothing in that is ever run or imported: `read_context` reads the defaults in it.
    """

    series: int
    context: bytes
    bundle: bytes = b""


class FleetConnection:
    """A node's connection to a server: `receive` messages with all that is in them, `send` replies."""

    def __init__(self, calls: tuple[Any, ...]) -> None:
        self.node: int = calls[0]
        self._receive, self._send, self._get_run, self._get_fab, self._pull, self._push, self._confirm = calls[1:]

    def receive(self) -> Envelope | None:
        """The next message with all its objects; None when there is none, or the server no longer has what is in it."""
        from flwr.common.serde import message_to_proto
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, pull_objects
        from flwr.supercore.run import RunNotRunningException

        try:
            if (received := self._receive()) is None:
                return None
            message, tree = received
            objects = pull_objects(
                [node.object_id for node in iterate_object_tree(tree)],
                partial(self._pull, message.metadata.run_id),
                max_time=PULL_SECONDS,
                initial_backoff=FIRST_BACKOFF,
                backoff_cap=LONGEST_BACKOFF,
            )
            self._confirm(message.metadata.run_id, message.metadata.message_id)
        except RunNotRunningException:
            return None
        except ObjectPullError as error:
            log.warning("a message could not be fetched: %s", error)
            return None
        return Envelope(message_to_proto(message).SerializeToString(), tree.SerializeToString(), objects)

    def know(self, run: int, node_config: Mapping[str, str], before: Iterable[KnownRun]) -> KnownRun:
        """What is to be known of a run before its first message, its state that of a run `before` it in its series.

        Raises `RunOver`.
        """
        from flwr.app import Context, RecordDict
        from flwr.supercore.run import RunNotRunningException

        try:
            facts = self._get_run(run)
            bundle = self._get_fab(facts.fab_hash, run).content
        except RunNotRunningException:
            raise RunOver from None
        context = Context(run, self.node, dict(node_config), RecordDict(), facts.override_config, facts.series_id)
        for known in before:
            if known.series == facts.series_id:
                context.state = read_context(known.context, b"").state
        return KnownRun(facts.series_id, write_context(context), bundle)

    def send(self, reply: Envelope, seconds: float) -> None:
        """Send a reply that took so many `seconds` to make. Raises `RunOver` where nobody waits for it any more."""
        from flwr.common.serde import message_from_proto
        from flwr.proto.message_pb2 import Message, ObjectTree
        from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, push_object_contents_from_iterable
        from flwr.supercore.run import RunNotRunningException

        message = message_from_proto(Message.FromString(reply.head))
        try:
            wanted, session = self._send(message, ObjectTree.FromString(reply.tree), seconds)
            contents = [(name, content) for name, content in reply.objects.items() if name in wanted]
            push_object_contents_from_iterable(contents, partial(self._push, message.metadata.run_id, session))
        except (RunNotRunningException, ObjectPushError):
            raise RunOver from None


@contextmanager
def connect(server: str, ca: bytes, key: bytes) -> Iterator[FleetConnection]:
    """Sign a node on to a server ("HOST:PORT") over TLS with its private key (OpenSSH, EC P-384); at the end, sign it off.

    Signs of life are sent in a thread. While the server is out of reach every call waits for it. A node that the server
    refuses ends with exit code 1 after Flower's own message; what else breaks the connection is logged, and ends the block.
    """
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key
    from flwr.client.grpc_rere_client import connection
    from flwr.supercore import heartbeat
    from flwr.supercore.retry import make_simple_grpc_retry_invoker
    from flwr.supercore.retry.retry_invoker import exponential

    retries = partial(exponential, max_delay=RECONNECT)
    vars(connection).update(HEARTBEAT_DEFAULT_INTERVAL=HEARTBEAT, create_channel=_channel)
    vars(heartbeat).update(HEARTBEAT_DEFAULT_INTERVAL=HEARTBEAT, exponential=lambda max_delay: retries())
    retry = make_simple_grpc_retry_invoker()
    retry.wait_gen_factory = retries
    private = load_ssh_private_key(key, None)
    keys = private, private.public_key()
    with connection.grpc_request_response(
        server,
        False,
        retry,
        root_certificates=ca,
        authentication_keys=keys,  # type: ignore[arg-type]
    ) as calls:
        yield FleetConnection(calls)


def _channel(
    server_address: str, insecure: bool, root_certificates: bytes, max_message_length: int, interceptors: Sequence[Any]
) -> Any:
    """A channel as Flower makes it, which notices sooner that a connection is dead, and makes a new one sooner."""
    import grpc  # type: ignore[import-untyped]

    options = {
        "max_send_message_length": max_message_length,
        "max_receive_message_length": max_message_length,
        "keepalive_time_ms": 1000 * SILENCE,
        "keepalive_timeout_ms": 1000 * SILENCE,
        "initial_reconnect_backoff_ms": 1000,
        "max_reconnect_backoff_ms": 1000 * RECONNECT,
        "min_reconnect_backoff_ms": 1000 * CONNECT,  # which is how long gRPC lets one take
    }
    named = [(f"grpc.{name}", value) for name, value in options.items()]
    secure = grpc.secure_channel(server_address, grpc.ssl_channel_credentials(root_certificates), named)
    return grpc.intercept_channel(secure, *interceptors)


def name_message(message: Message, name: str) -> None:
    """Give a message the id that its reply will name."""
    message.metadata.__dict__["_message_id"] = name


def unpack(envelope: Envelope) -> Message:
    """Read a message with its content. Raises what Flower raises for one that is damaged."""
    from flwr.app import Message
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    name = ObjectTree.FromString(envelope.tree).object_id
    message = inflate_object_from_contents(name, dict(envelope.objects))
    if not isinstance(message, Message):
        raise TypeError(f"what came is a {type(message).__name__}, no message")
    name_message(message, name)  # the content's hash, and so not part of it
    return message


def pack(message: Message) -> Envelope:
    """Write a message with its content."""
    from flwr.app.message import remove_content_from_message
    from flwr.common.serde import message_to_proto
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )

    name_message(message, message.object_id)
    head = message_to_proto(remove_content_from_message(message)).SerializeToString()
    with no_object_id_recompute():
        tree = get_object_tree(message).SerializeToString()
        objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    return Envelope(head, tree, objects)


def error_reply(envelope: Envelope, code: int, reason: str) -> Envelope:
    """Build the reply that says that no answer could be made to a message, without reading what is in it."""
    from flwr.app import Error, Message

    return pack(Message(Error(code, reason), reply_to=head(envelope)))


def head(envelope: Envelope) -> Message:
    """The message without its content: who asks, of which run, and what kind of work."""
    from flwr.common.serde import message_from_proto
    from flwr.proto.message_pb2 import Message

    return message_from_proto(Message.FromString(envelope.head))


def read_context(context: bytes, bundle: bytes) -> Context:
    """Read a context and, where the run's app bundle comes along, complete its run config by the defaults in that.

    Raises `ValueError` for a bundle that cannot be read, or overrides of what has no default in it: Flower allows no others.
    """
    from flwr.common.config import get_fused_config_from_fab
    from flwr.common.serde import context_from_proto
    from flwr.proto.message_pb2 import Context
    from flwr.supercore.run import Run

    read = context_from_proto(Context.FromString(context))
    if bundle:
        run = Run.create_empty(read.run_id)
        run.override_config = read.run_config
        read.run_config = get_fused_config_from_fab(bundle, run)
    return read


def write_context(context: Context) -> bytes:
    """Write a context with its state."""
    from flwr.common.serde import context_to_proto

    written: bytes = context_to_proto(context).SerializeToString()
    return written
