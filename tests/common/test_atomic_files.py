"""Files on disk: whole or not there, and an error that names the one that cannot be read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tessera.common.errors import DamagedError, DataError, StorageError
from tessera.common.utils.atomic_files import (
    read_json,
    read_tensors,
    storing,
    sweep,
    write_bytes,
    write_json,
    write_tensors,
)

ROOT = Path(__file__).parent.parent.parent
KILLS = 25
WRITER = """
import os, random, signal, sys, time
from pathlib import Path
from tessera.common.utils.atomic_files import write_bytes

path, contents, found = Path(sys.argv[1]), (b"a" * 3_000_000, b"b" * 5_000_000), set()
write_bytes(path, contents[0])
random.seed(0)
for kill in range(int(sys.argv[2])):
    writer = os.fork()
    if not writer:
        while True:
            for content in contents:
                write_bytes(path, content)
    time.sleep(random.uniform(0.001, 0.05))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    left = path.read_bytes()
    if left not in contents:
        sys.exit(f"kill {kill} left {len(left)} bytes: {set(left)}")
    found.add(left[:1])
print(len(found))
"""


def test_a_writer_killed_at_any_time_leaves_old_or_new_content(tmp_path: Path) -> None:
    """Processes that write two contents in turn are killed at random times."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "state"), str(KILLS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "2", "both contents were seen, so the writers were really at work"


def test_a_write_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_bytes(path, b"old")
    with pytest.raises(TypeError):
        write_bytes(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_come_back_with_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "state.safetensors"
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.ones(3, 2, dtype=torch.float16).T, "none": torch.zeros(0, 4)}
    write_tensors(path, tensors, {"users": '["é"]'})
    found, metadata = read_tensors(path)
    assert metadata == {"users": '["é"]'}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"a": torch.randn(50, 50)})
    whole = path.read_bytes()
    for length in (0, 4, 8, 60, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match=r"state\.safetensors is truncated or not a safetensors file"):
            read_tensors(path)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"{}", b"\xff" * 200, b"\x08" + b"\0" * 7 + b"not json"])
def test_a_foreign_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"state\.safetensors is truncated or not a safetensors file"):
        read_tensors(path)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tensors = {"a": torch.randn(4, 3), "b": torch.randn(5).bfloat16()}
    write_tensors(path, tensors, {"users": "ann", "round": "3"})
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 7):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found, metadata = read_tensors(path)
        except DamagedError:
            continue
        # It hit the seal's own name, or a blank between two fields.
        assert metadata.items() >= {"users": "ann", "round": "3"}.items()
        assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_a_file_of_another_program_has_no_seal_and_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "state.safetensors", {"by": "another"})
    tensors, metadata = read_tensors(tmp_path / "state.safetensors")
    assert (tensors["a"].tolist(), metadata) == ([1, 1], {"by": "another"})


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tensors(tmp_path / name, {"b": torch.ones(3), "a": torch.zeros(2)}, {"x": "1", "y": "2", "z": "3"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_what_cannot_be_written_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file/state cannot be written: File exists; mend the disk"):
        write_bytes(tmp_path / "file" / "state", b"")
    with (
        pytest.raises(StorageError, match=r"state cannot be written: No space left on device; make room"),
        storing(tmp_path / "state"),
        open("/dev/full", "w") as full,  # noqa: PTH123
    ):
        full.write("x")


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".state.1a2b3c4d.tmp").touch()
    write_bytes(tmp_path / "state", b"whole")
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.safetensors does not exist"):
        read_tensors(tmp_path / "gone.safetensors")
    with pytest.raises(DataError, match=r"gone\.json does not exist"):
        read_json(tmp_path / "gone.json")


def test_json_is_readable_and_comes_back(tmp_path: Path) -> None:
    content = {"run": "démo", "rounds": [1, 2]}
    write_json(tmp_path / "run.json", content)
    assert read_json(tmp_path / "run.json") == content
    assert "démo" in (tmp_path / "run.json").read_text(encoding="utf-8"), "for people to read"


@pytest.mark.parametrize(
    ("content", "message"), [('{"run": ', "not readable JSON"), ("", "not readable JSON"), ("[1]", "holds a list")]
)
def test_json_that_is_no_object_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not readable JSON"):
        read_json(path)


def test_what_is_written_is_not_pickle(tmp_path: Path) -> None:
    write_tensors(tmp_path / "state", {"a": torch.zeros(2)})
    content = (tmp_path / "state").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["a"]["shape"] == [2]
