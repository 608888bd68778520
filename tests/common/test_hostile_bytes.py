"""What anybody may send is read, or refused by an error of ours; nothing else is raised, and no room is made for it."""

import json
import resource
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.app import answer
from tessera.client.owner.policy import POLICY, Policy, read_policy
from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.errors import ConfigError, RunError, TesseraError
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.codecs import FORMATS, decode, encode
from tessera.common.protocol.masked.masking import MASKED
from tessera.common.protocol.masked.stages import StageMessage, pack_stage, unpack_stage
from tessera.common.protocol.messages import VIEWS, Ask, Masking, Task, in_answer_to, pack_task, unpack_task
from tessera.common.protocol.published import Published, PublishedCatalogue, PublishedFile
from tessera.common.protocol.tensors import from_record, to_record
from tessera.common.protocol.updates import ANSWERS, Update, pack_update, unpack_update
from tessera.common.secure.fixed_point import Spec
from tessera.common.secure.messages import MaskedUpload
from tessera.server.validation import Expected, RejectedUpdate, validate_update
from tests.support.catalogues import small_dataset, small_settings
from tests.support.hostile import fuzz, tampered

pytestmark = pytest.mark.fuzzing
ROOM = 2**30
"""Bytes by which no message of a few kilobytes may make a process grow."""
TENSORS = {VIEWS: torch.ones(2, 6, 8), "history": torch.ones(6, 8)}
MASKING = Masking(3, (0, 1), (Spec("gradients/views", (2, 6, 8), "table", 4.0),))
TASK = Task(
    "train",
    "run",
    2,
    (0,),
    ("one", "two"),
    "c0",
    DeviceSettings.of(small_settings()),
    "0" * 64,
    also=(Ask("evaluate", 1),),
    components=((0.6, 0.8),),
    masking=MASKING,
)
FILE = PublishedFile(sha256="1" * 64, size=1000)
MANIFEST = Published(
    run="run",
    round=3,
    time="2026-01-01T00:00:00+00:00",
    views=("one", "two"),
    settings=TASK.settings,
    catalogue=PublishedCatalogue(sha256="2" * 64, n_items=6),
    tensors="3" * 64,
    files={"tensors": FILE, "items": FILE, "popularity": FILE},
)
MESSAGE = pack_task(TASK, TENSORS, {"counts": torch.ones(6)})


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(autouse=True)
def _no_room() -> Any:
    before = peak()
    yield
    assert peak() < before + ROOM, "it made room for what somebody only said"


@fuzz(150)
@given(tampered(MESSAGE))
def test_a_task_is_read_or_refused(content: Any) -> None:
    with suppress(TesseraError):
        task, tensors, inputs = unpack_task(content)
        assert all(isinstance(value, torch.Tensor) for value in {**(tensors or {}), **inputs}.values())
        assert task.asks()


@fuzz(60)
@given(data=st.data())
def test_settings_that_came_are_read_or_refused(data: st.DataObject) -> None:
    """The settings of a task are JSON in one of its entries: any value in them may be another."""
    said = json.loads(TASK.settings.model_dump_json())
    group = data.draw(st.sampled_from(sorted(said)))
    values = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
    if isinstance(said[group], dict) and said[group]:
        said[group][data.draw(st.sampled_from(sorted(said[group])))] = data.draw(values)
    else:
        said[group] = data.draw(values)
    content = pack_task(TASK)
    content.config_records["task"]["settings"] = json.dumps(said)
    with suppress(TesseraError):
        unpack_task(content)


@fuzz(100)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["epoch", "asks", "tables"]), inner)
        ),
        max_leaves=12,
    ).map(json.dumps)
    | st.text(max_size=30)
)
def test_masking_is_read_or_refused(text: str) -> None:
    with suppress(TesseraError):
        read = Masking.read(text)
        assert read is None or Masking.read(read.write()) == read


@pytest.mark.parametrize(
    "table",
    [
        ["gradients/views", [2**20, 2**20], "table", 4.0],
        ["gradients/views", [-1], "table", 4.0],
        ["gradients/views", [2.5], "table", 4.0],
        ["gradients/views", [2], "strange", 4.0],
        ["gradients/views", [2], "table", float("nan")],
        ["gradients/views", [2], "table", 0],
    ],
)
def test_a_table_that_no_device_can_have_is_refused_before_room_is_made(table: list[Any]) -> None:
    with pytest.raises(TesseraError, match=r"mask|bound"):
        Masking.read(json.dumps({"epoch": 1, "asks": [0], "tables": [table]}))


@fuzz(150)
@given(data=st.data())
def test_an_update_is_taken_or_rejected(data: st.DataObject) -> None:
    """The server's side, masked or not: whatever came, it is taken or rejected with a reason."""
    masked = data.draw(st.booleans())
    task = TASK if masked else replace(TASK, masking=None)
    task = task.asks()[-1]
    update = Update(TENSORS, 2.0, MetricSums({"users": 2.0, "loss": 1.0}), {})
    if masked:
        update = Update().put(MASKED, (MaskedUpload(1, 0, bytes(32), bytes(64), b"words"),))
    content = pack_update(update)
    content[ANSWERS] = in_answer_to(task)
    changed = data.draw(tampered(content))
    with suppress(RejectedUpdate):
        taken = validate_update(changed, Expected(task, TENSORS, {}, 0.0))
        assert all(bool(value.isfinite().all()) for value in taken.gradients.values())
    with suppress(TesseraError, KeyError):  # as `Part.read` says
        unpack_update(changed, [MASKED])


@pytest.mark.parametrize("codec", FORMATS)
@fuzz(40)
@given(data=st.data())
def test_a_table_is_decoded_or_refused(codec: Any, data: st.DataObject) -> None:
    content = pack_update(Update())
    content["gradients"] = to_record(encode(TENSORS, codec, 3))
    changed = data.draw(tampered(content))
    if "gradients" in changed.array_records:
        with suppress(RunError):
            decode(from_record(changed.array_records["gradients"]), {VIEWS: (2, 6, 8), "history": (6, 8)}, codec, 3)


@fuzz(100)
@given(tampered(pack_stage(StageMessage("unmask", "run", (b"TS\x01\x07", b"")))))
def test_a_stage_of_secure_sums_is_read_or_refused(content: Any) -> None:
    with suppress(TesseraError):
        read = unpack_stage(content)
        assert unpack_stage(pack_stage(read)) == read


@fuzz(100)
@given(data=st.data())
def test_what_is_published_is_read_or_refused(data: st.DataObject) -> None:
    """A manifest is JSON of whoever answers at an address: any value in it may be another, and no name becomes a path."""
    said = json.loads(MANIFEST.model_dump_json())
    values = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.just("../../etc/passwd")
    group = data.draw(st.sampled_from(sorted(said)))
    if isinstance(said[group], dict) and data.draw(st.booleans()):
        said[group][data.draw(st.sampled_from(sorted(said[group])))] = data.draw(values)
    else:
        said[group] = data.draw(values)
    with suppress(TesseraError):
        found = Published.read(json.dumps(said).encode(), "somebody")
        names = (found.tensors, found.catalogue.sha256, *(file.sha256 for file in found.files.values()))
        assert not [name for name in (found.run, *names) if "/" in name]


@fuzz(60)
@given(data=st.data())
def test_a_device_answers_whatever_came(data: st.DataObject, device: Path) -> None:
    """With records, or a refusal that says nothing of what it holds: nothing is raised, and nobody named."""
    stage = pack_stage(StageMessage("keys", "run", (b"TS\x01\x01\x03run\0\0\0\x01\x05",)))
    changed = data.draw(tampered(MESSAGE) | tampered(stage))
    reply = answer(changed, lambda settings: RecommendationClient(device))
    if "refusal" in reply:
        assert "person" not in str(reply.config_records["refusal"]["reason"])


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tessera.deploy.provisioning.partition import partition

    folder = tmp_path_factory.mktemp("hostile")
    return partition(small_dataset(folder / "small", 30), folder / "devices", 1)[0]


@fuzz(60)
@given(st.binary(max_size=60) | st.text("{}[]&*:-#\n ab1.'\"!|>%@", max_size=60).map(str.encode))
def test_any_policy_file_is_a_policy_or_an_error_that_names_it(content: bytes) -> None:
    with suppress(ConfigError):
        _read(content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 5000,
        b"people: 2024-13-45",
        b"people: " + b"9" * 5000,
        b"a: &a [x, x]\nb: &b [*a, *a]\npeople: [*b, *b]",
        b"people: &a [*a]",
        b"? [1, 2]\n: 3",
        b"1: 2",
        b"!!python/object/apply:os.system ['true']",
    ],
)
def test_traps_of_yaml_are_errors_that_name_the_file(content: bytes) -> None:
    with pytest.raises(ConfigError, match=POLICY):
        _read(content)


def _read(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / POLICY).write_bytes(content)
        assert isinstance(read_policy(Path(name)), Policy)
