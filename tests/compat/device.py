"""A device of the kept sources, in a process of its own: python device.py SOURCES DEVICES. Speaks Flower's records as bytes.

On standard input come the length of a node's name and of a task's bytes, the name, and the bytes; on standard output goes the
length of the reply, and the reply.
"""

import struct
import sys
from pathlib import Path

sys.path[:0] = [sys.argv[1]]

from flwr.common.serde import recorddict_from_proto, recorddict_to_proto  # noqa: E402
from flwr.proto.recorddict_pb2 import RecordDict  # noqa: E402

from tessera.client import app  # noqa: E402
from tessera.client.recommendation import RecommendationClient  # noqa: E402

assert Path(app.__file__).is_relative_to(sys.argv[1]), "the device runs its own sources, and not those of today"
source, sink = sys.stdin.buffer, sys.stdout.buffer
while sizes := source.read(16):
    name_size, size = struct.unpack("<qq", sizes)
    folder = Path(sys.argv[2]) / source.read(name_size).decode()
    content = recorddict_from_proto(RecordDict.FromString(source.read(size)))
    reply = app.answer(content, lambda settings: RecommendationClient(folder, simulated=True), simulated=True)  # noqa: B023
    said = recorddict_to_proto(reply).SerializeToString()
    sink.write(struct.pack("<q", len(said)) + said)
    sink.flush()
