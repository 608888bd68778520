"""What of Flower is not public API is there in the version that is installed, and does what is built on it."""

import ast
import zipfile
from importlib.metadata import version
from inspect import signature
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.client.grpc_rere_client import connection
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, ErrorCode
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore import heartbeat
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable import inflatable_utils
from flwr.superlink.runtime import RuntimeHttpClient, run_serverapp
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.common.flower_internals.compact import LARGEST, NAME, compacted, opened
from tessera.common.flower_internals.control import app_bundle
from tessera.common.flower_internals.fleet import (
    APP_CRASHED,
    APP_RAISED,
    HEARTBEAT,
    Envelope,
    error_reply,
    head,
    pack,
    read_context,
    unpack,
    write_context,
)
from tessera.common.flower_internals.grid import speak_as
from tests.test_layout import PRODUCT

PYPROJECT = b"""[project]
name = "app"
version = "1.0.0"
description = "An app."
license = "Apache-2.0"

[tool.flwr.app]
publisher = "somebody"

[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:client"
"""


def content(bundle: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_an_app_is_bundled_as_flower_bundles_it(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(PYPROJECT)
    theirs = content(build_fab_from_disk(tmp_path))
    rewritten = theirs["pyproject.toml"]  # Flower formats it
    assert content(app_bundle(rewritten)) == theirs
    assert app_bundle(PYPROJECT) == app_bundle(PYPROJECT)


def test_what_is_not_public_is_used_in_one_folder_alone() -> None:
    public = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}
    for path in PRODUCT:
        if path.parent.name == "flower_internals":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            private = [name for name in names if name.split(".")[0] == "flwr" and name not in public]
            assert not private, f"{path} imports {private}"


def test_the_pinned_version_has_what_a_node_uses() -> None:
    """What would have to be looked at again with another version: names, arguments, and where defaults are kept."""
    assert version("flwr").startswith("1.39.")
    arguments = signature(connection.grpc_request_response).parameters
    assert {"server_address", "insecure", "retry_invoker", "root_certificates", "authentication_keys"} <= set(arguments)
    for module in (connection, heartbeat):
        assert module.HEARTBEAT_DEFAULT_INTERVAL in (30, HEARTBEAT)
    assert HEARTBEAT >= HEARTBEAT_MIN_INTERVAL
    channel = ["server_address", "insecure", "root_certificates", "max_message_length", "interceptors"]
    assert list(signature(vars(connection)["create_channel"]).parameters) == channel
    assert callable(vars(heartbeat)["exponential"])
    defaults = inflatable_utils.pull_objects.__kwdefaults__ or {}
    assert {"initial_backoff", "backoff_cap", "max_time"} <= defaults.keys()
    assert (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, ErrorCode.CLIENT_APP_CRASHED) == (APP_RAISED, APP_CRASHED)


def test_the_pinned_version_has_what_starts_server_apps_and_asks_servers() -> None:
    runner = list(signature(run_serverapp).parameters)
    assert runner == [
        "runtime_api_address",
        "log_queue",
        "token",
        "insecure",
        "certificates",
        "parent_pid",
        "runtime_dependency_install",
    ]
    assert callable(RuntimeHttpClient.AcquireTask)
    asked = ("RegisterNode", "ListNodes", "UnregisterNode", "StartRun", "ListRuns", "StopRun", "StreamLogs")
    assert all(callable(getattr(ControlHttpClient, name)) for name in asked)
    assert ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE


@settings(deadline=None)  # the first message is slow
@given(st.binary(max_size=500), st.dictionaries(st.sampled_from("abc"), st.floats(allow_nan=False)), st.integers(0, 9))
def test_a_message_is_the_same_after_its_journey(content: bytes, numbers: dict[str, float], size: int) -> None:
    speak_as(1, 1)
    array = np.arange(size, dtype=np.float32)
    records = {"config": ConfigRecord({"bytes": content, **numbers}), "arrays": ArrayRecord([array])}
    sent = Message(RecordDict(records), 2, "query", group_id="3")
    envelope = pack(sent)
    came = unpack(envelope)
    assert came.content == sent.content
    assert (came.metadata.message_type, came.metadata.group_id, came.metadata.dst_node_id) == ("query", "3", 2)
    assert came.metadata.message_id == head(envelope).metadata.message_id == envelope_name(envelope)
    reply = unpack(error_reply(envelope, APP_RAISED, "no"))
    assert (reply.error.reason, reply.metadata.reply_to_message_id) == ("no", came.metadata.message_id)


def envelope_name(envelope: Envelope) -> str:
    return ObjectTree.FromString(envelope.tree).object_id


def test_a_runs_config_is_the_bundles_defaults_with_the_runs_own_changes() -> None:
    bundle = app_bundle(PYPROJECT + b'[tool.flwr.app.config]\nrounds = 3\nname = "a"\n')
    state = RecordDict({"kept": ConfigRecord({"count": 7})})
    context = read_context(write_context(Context(1, 2, {"data-dir": "d"}, state, {"rounds": 5}, 4)), bundle)
    assert context.run_config == {"rounds": 5, "name": "a"}
    assert (context.state, context.node_config) == (state, {"data-dir": "d"})
    with pytest.raises(ValueError, match="unknown"):
        read_context(write_context(Context(1, 2, {}, RecordDict(), {"unknown": 5}, 4)), bundle)


@given(st.dictionaries(st.sampled_from("abc"), st.binary(max_size=100)), st.integers(0, 9))
def test_a_compact_message_is_one_object_and_is_answered_so(values: dict[str, bytes], size: int) -> None:
    speak_as(1, 1)
    array = np.arange(size, dtype=np.float32)
    content = RecordDict({"config": ConfigRecord(dict(values)), "arrays": ArrayRecord([array, array + 1])})
    sent = compacted(content)
    assert len(pack(Message(sent, 2, "query")).objects) == 3, "the message, its content, and one record"
    came, form = opened(sent)
    assert came == content
    assert opened(form(content))[0] == content
    plain, form = opened(content)
    assert plain is content
    assert form(content) is content


def test_what_is_large_is_sent_in_pieces_as_flower_does() -> None:
    content = RecordDict({"arrays": ArrayRecord([np.zeros(LARGEST // 8 + 1)])})
    assert compacted(content) is content


@pytest.mark.parametrize("written", [b"\xff\xff", "text", 3])
def test_a_compact_message_that_is_damaged_is_an_error(written: bytes | str | int) -> None:
    with pytest.raises((TypeError, DecodeError)):
        opened(RecordDict({NAME: ConfigRecord({NAME: written})}))
