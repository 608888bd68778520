"""Files on disk: whole or not there, and an error that names the one that cannot be read."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import DataError
from common.files import read_json, read_tensors, write_bytes, write_json, write_tensors

ROOT = Path(__file__).parent.parent.parent
KILLS = 25
WRITER = """
import os, random, signal, sys, time
from pathlib import Path
from common.files import write_bytes

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
        with pytest.raises(DataError, match=r"state\.safetensors is truncated or not a safetensors file"):
            read_tensors(path)


@pytest.mark.parametrize("content", [b"\x80\x04K\x01.", b"{}", b"\xff" * 200, b"\x08" + b"\0" * 7 + b"not json"])
def test_a_foreign_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"state\.safetensors is truncated or not a safetensors file"):
        read_tensors(path)


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
