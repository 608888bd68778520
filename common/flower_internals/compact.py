"""Writes all that is in a small message as one object, since over a network each object of Flower's costs two requests.

An array is three objects of Flower's, a record one: the reply to a round of training is a dozen, and a server spends more on
fetching them one by one than on all else. What is large stays as it was: Flower sends it in pieces, several at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.app import RecordDict

LARGEST = 8 << 20
"""Bytes that are sent in one piece at most."""
NAME = "compact"
Form = Callable[["RecordDict"], "RecordDict"]
"""Writes content in one form or the other."""


def compacted(content: RecordDict) -> RecordDict:
    """The same content as bytes in a single record, where it is small enough; else as it is."""
    from flwr.app import ConfigRecord, RecordDict
    from flwr.common.serde import recorddict_to_proto

    if sum(record.count_bytes() for record in content.array_records.values()) > LARGEST:
        return content
    return RecordDict({NAME: ConfigRecord({NAME: recorddict_to_proto(content).SerializeToString()})})


def opened(content: RecordDict) -> tuple[RecordDict, Form]:
    """The content as it was before `compacted`, if it was; and the form in which to answer, the one in which it came.

    Raises what Flower and protocol buffers raise for bytes that are no records.
    """
    from flwr.common.serde import recorddict_from_proto
    from flwr.proto.recorddict_pb2 import RecordDict

    if NAME not in content.config_records:
        return content, lambda reply: reply
    written = content.config_records[NAME][NAME]
    if not isinstance(written, bytes):
        raise TypeError(f"a record {NAME!r} holds {type(written).__name__}, not bytes")
    return recorddict_from_proto(RecordDict.FromString(written)), compacted
