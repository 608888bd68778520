"""Chooses where and how tensors are computed, CPU or CUDA, by how many threads, and checks that results are finite."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tessera.common.errors import ConfigError


def resolve_device(wanted: str) -> torch.device:
    """Turn auto, cpu or cuda into a device. Raises `ConfigError` when CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigError("device: cuda was asked for, but this machine's torch sees no CUDA device; use auto or cpu")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


def finite(tensor: Tensor) -> bool:
    """Whether all of its numbers are: seen in the least and the largest, which takes a twentieth of the time of a mask."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that a machine's load and its number of cores change no bit of a sum or a decomposition.

    Threads add up parts of a sum each, so that other numbers of them round otherwise; a fit of a thousand steps makes much of
    the difference. What remains is the kind of processor and the version of torch.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
