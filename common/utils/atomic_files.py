"""Reads and writes files atomically: a reader sees the old content or the new, never a part, whenever a process dies.

Private files of an encrypted folder are sealed and opened here: see `tessera.common.utils.encryption`.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

from tessera.common.errors import DamagedError, DataError, StorageError
from tessera.common.utils.encryption.seam import folder_of, opened, sealed

if TYPE_CHECKING:
    import torch

PRIVATE = 0o600
"""Mode of a file that only its owner may read."""
SEAL = "sha256"
"""In a safetensors file's metadata: the hash of all else in it. The format itself would not notice a flipped bit."""
METADATA = "__metadata__"
CHUNK = 1 << 20


def write_bytes(path: Path, content: bytes, mode: int = 0o666, seal: bool = True, durable: bool = True) -> None:
    """Write `content` to `path` atomically: temporary name, sync, rename, sync of the folder; no sync where it need not be
    `durable`, as it says nothing once the machine has stopped.

    The file never has more permissions than `mode`, less what the process masks. Without `seal` it is as `content` says, in an
    encrypted folder too. Raises `StorageError`.
    """
    _write(path, [sealed(path, content) if seal else content], mode, durable)


def read_bytes(path: Path) -> bytes:
    """What `write_bytes` wrote. Raises `OSError`, and of an encrypted folder `Locked` or `DamagedError`."""
    return opened(path, path.read_bytes())


def _write(path: Path, parts: Sequence[bytes | memoryview], mode: int, durable: bool = True) -> None:
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
                file.writelines(parts)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if not durable:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Within it, that the system cannot write `path` is a `StorageError` that names it and says what to do."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend the disk or its permissions"
        raise StorageError(
            f"{path} cannot be written: {error.strerror}; {remedy}. What was there is whole, and a run goes on with --resume"
        ) from None


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`, where nobody writes now."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any], mode: int = 0o666, durable: bool = True) -> None:
    """Write `content` as readable JSON, atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode(), mode, durable=durable)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `DataError` that names the file."""
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not an object")
    return content


def write_tensors(
    path: Path, tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None, mode: int = 0o666
) -> None:
    """Write tensors as safetensors, atomically and sealed; the same content is the same file. Raises `StorageError`."""
    parts = pack_tensors(tensors, metadata)
    _write(path, [sealed(path, b"".join(parts))] if folder_of(path) else parts, mode)


def pack_tensors(
    tensors: Mapping[str, "torch.Tensor"], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """What `write_tensors` writes, in pieces."""
    from safetensors.torch import save  # only here: whoever reads JSON need not wait for torch

    packed = memoryview(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    start = 8 + int.from_bytes(packed[:8], "little")
    header, data = json.loads(bytes(packed[8:start])), packed[start:]
    header[METADATA] = dict(metadata or {})
    header[METADATA][SEAL] = _seal(header, [data])
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)  # tensors begin at a multiple of 8 bytes
    return [len(head).to_bytes(8, "little"), head, data]


def read_tensors(path: Path) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """Read tensors and metadata of a safetensors file, as `write_tensors` or another program wrote it.

    Raises `DamagedError` when it is truncated, foreign, or not as its seal says, `DataError` when there is none to be read.
    """
    from safetensors import SafetensorError, safe_open

    if folder_of(path):
        return unpack_tensors(_content(path), str(path))
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
        if SEAL in metadata and metadata.pop(SEAL) != _seal_of_file(path):
            raise DamagedError(f"{path} is damaged: its content is not what was written (by its {SEAL})")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except (SafetensorError, ValueError) as error:
        raise DamagedError(f"{path} is truncated or not a safetensors file: {error}") from None
    return tensors, metadata


def unpack_tensors(content: bytes, source: str) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """The same of what a file that is called `source` holds."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors, header = load(content), _header(BytesIO(content))
        metadata = {str(name): str(value) for name, value in header.get(METADATA, {}).items()}
        if SEAL in metadata and metadata.pop(SEAL) != _seal_of(BytesIO(content)):
            raise DamagedError(f"{source} is damaged: its content is not what was written (by its {SEAL})")
    except (SafetensorError, ValueError, AttributeError) as error:
        raise DamagedError(f"{source} is truncated or not a safetensors file: {error}") from None
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file alone, and nothing of its tensors; whether it is as its seal says is not seen.

    Raises `DamagedError` when it is truncated or foreign, `DataError` when there is none to be read.
    """
    try:
        with BytesIO(_content(path)) if folder_of(path) else path.open("rb") as file:
            return {str(name): str(value) for name, value in _header(file).get(METADATA, {}).items()}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{path} is truncated or not a safetensors file: {error}") from None


def _content(path: Path) -> bytes:
    """What a private file of an encrypted folder holds. Raises `DataError` where there is none to be read."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _header(file: IO[bytes]) -> dict[str, Any]:
    """The header of a safetensors file; after it come the tensors."""
    header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return header


def _seal_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return _seal_of(file)


def _seal_of(file: IO[bytes]) -> str:
    """The seal that a whole safetensors file should have."""
    header = _header(file)
    del header[METADATA][SEAL]
    return _seal(header, iter(lambda: file.read(CHUNK), b""))


def _seal(header: Mapping[str, Any], data: Iterable[bytes | memoryview]) -> str:
    state = hashlib.sha256(json.dumps(header).encode())
    for part in data:
        state.update(part)
    return state.hexdigest()


def digest(content: bytes) -> str:
    """SHA-256 of `content`, as hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal, without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
