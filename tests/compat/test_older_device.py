"""A device of the sources kept when the protocol version was introduced, against today's server."""

import struct
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from flwr.app import ConfigRecord, Message
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict

from tessera.common.protocol.messages import PROTOCOL
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import InlineGrid
from tessera.server.app import serve
from tests.compat.keep import archive
from tests.deploy.test_executors import SGD, last_checkpoint, silent
from tests.deploy.test_round_policy import rounds
from tests.support.catalogues import small_job


@pytest.mark.parametrize("wire", [{}, {"gradients": "float32", "explained": 0.6}])
def test_a_device_of_the_day_the_version_was_introduced_still_takes_part(tmp_path: Path, wire: dict) -> None:
    """It gives what a device of today gives, also where the server says more than it knows; it sends what is wanted of
    gradients, and all else."""
    wire = {"views": "float32", **wire}
    inline.execute(small_job(tmp_path, "today", 2, wire=wire, server=SGD), silent)
    job = small_job(tmp_path, "older", 2, wire=wire, server=SGD)
    with ZipFile(archive(PROTOCOL)) as kept:
        kept.extractall(tmp_path / "sources")
    command = [sys.executable, Path(__file__).with_name("device.py"), tmp_path / "sources", job.devices[0].parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path) as device:
        assert device.stdin is not None
        assert device.stdout is not None

        class Older(InlineGrid):
            def _handle(self, message: Message) -> Message:
                header = message.content.config_records["task"]
                message.content["task"] = ConfigRecord({**header, "mood": "good"})
                said = recorddict_to_proto(message.content).SerializeToString()
                name = f"node-{message.metadata.dst_node_id - 1}".encode()
                device.stdin.write(struct.pack("<qq", len(name), len(said)) + name + said)
                device.stdin.flush()
                (size,) = struct.unpack("<q", device.stdout.read(8))
                return Message(recorddict_from_proto(RecordDict.FromString(device.stdout.read(size))), reply_to=message)

        grid = Older(inline.device_app(job.devices[0].parent), 2)
        serve(grid, job.settings, job.catalogue, job.run_dir, resume=False)
        device.stdin.close()
    assert [line["nodes"] for line in rounds(job)] == [2] * 4
    assert not any("dropped" in line for line in rounds(job))
    today = last_checkpoint(tmp_path / "today")
    for name, value in last_checkpoint(job.run_dir).items():
        torch.testing.assert_close(value, today[name])


def test_the_version_is_one_that_a_device_is_kept_of() -> None:
    if not archive(PROTOCOL).exists():
        pytest.fail(f"protocol {PROTOCOL} is new: run python -m tests.compat.keep {PROTOCOL} and commit what it writes")
