"""Chooses the precision of training's matrix products: of their factors alone. What they add up, and all else, is float32.

`bfloat16` rounds the factors to 8 bits of mantissa where the processor multiplies those faster: on CUDA the same switch means
TF32, which has 11. Evaluation never enters here: rounded scores would tie.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch

from tessera.common.utils.computing import Precision

FASTER = 1.5
"""How many times as fast products must be, for `auto` to take them: a processor without an instruction for them is slower."""
TRIES = 5
SHAPE = 256, 448, 1024
"""Of the product that is measured: users, views times dimensions, items. Two milliseconds in float32."""


@cache
def resolved(wanted: Precision, device: str = "cpu") -> Precision:
    """What `wanted` means in this process: `auto` is what was faster when it was first asked for, on this `device` type."""
    if wanted != "auto":
        return wanted
    return "bfloat16" if speedup(device) >= FASTER else "float32"


def described(wanted: Precision) -> str:
    """What a result says of it: `auto` with what that means in this process, since other machines may differ."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return f"auto ({resolved(wanted, device)} here)" if wanted == "auto" else wanted


def speedup(device: str = "cpu") -> float:
    """How many times as fast a product of rounded factors is as one in float32: the best of a few tries each, in turn."""
    draws = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=draws).to(device) for shape in (SHAPE[:2], SHAPE[1:]))
    kinds: tuple[Precision, Precision] = "float32", "bfloat16"
    seconds: dict[Precision, list[float]] = {kind: [] for kind in kinds}
    for _ in range(TRIES):
        for kind in kinds:
            with products(kind):
                seconds[kind].append(_seconds(lambda: left @ right))
    slow, fast = (min(seconds[kind]) for kind in kinds)
    return slow / fast


@contextmanager
def products(precision: Precision) -> Iterator[None]:
    """Within it, matrix products of float32 tensors are computed in a precision that is not `auto`. It holds for all threads
    of the process, as torch's own switch does; products of other types are left as they are."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "bfloat16" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    """Of a product whose result has arrived."""
    started = time.perf_counter()
    float(product()[0, 0])
    return time.perf_counter() - started
