"""Adds tensors by name, names them by a hash of their content, and turns them into Flower's records and back."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from torch import Tensor

from tessera.common.errors import RunError

if TYPE_CHECKING:
    from flwr.app import Array, ArrayRecord, RecordDict

Tensors = Mapping[str, Tensor]


def add(left: Tensors, right: Tensors) -> dict[str, Tensor]:
    """Add tensors name by name; a name absent on one side counts as 0 there. Raises `RunError` when shapes differ."""
    for name in left.keys() & right.keys():
        if left[name].shape != right[name].shape:
            raise RunError(
                f"{name!r} has shape {tuple(right[name].shape)} from one device, {tuple(left[name].shape)} from another"
            )
    both = {name: left[name] + value for name, value in right.items() if name in left}
    return {**left, **right, **both}


def content_hash(tensors: Tensors) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = to_numpy(tensors[name])
        state.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        state.update(array.data)
    return state.hexdigest()


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Return a contiguous array on the CPU."""
    array: np.ndarray = tensor.detach().cpu().contiguous().numpy()
    return array


def to_record(tensors: Tensors) -> ArrayRecord:
    """Write tensors as a record of arrays."""
    from flwr.app import Array, ArrayRecord

    return ArrayRecord({name: Array(to_numpy(tensor)) for name, tensor in tensors.items()})


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Read a record of arrays, which may come from anybody. Raises `RunError` for what is no array of numbers."""
    return {name: _tensor(name, array) for name, array in record.items()}


def array_bytes(content: RecordDict) -> int:
    """How many bytes of tensors a message carries."""
    return sum(len(array.data) for record in content.array_records.values() for array in record.values())


def _tensor(name: str, array: Array) -> Tensor:
    """An array as it came. Raises `RunError` unless it is as long as it says: a few bytes must not make anybody make room for
    terabytes."""
    try:
        stream = BytesIO(array.data)
        header = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(stream)]
        shape, _, kind = header(stream)
        if math.prod(shape) * kind.itemsize != len(array.data) - stream.tell():
            raise ValueError("it is not as long as it says")
        return torch.from_numpy(array.numpy())
    except Exception as error:  # NumPy has Python read the header, which raises what it likes
        raise RunError(f"{name!r} came as no array of numbers: {error}") from None
