"""How tables travel: near enough to what they were, right on average, and refused when they do not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.codecs import FORMATS, ITEMS, SCALES, Float, decode, encode, hadamard, rotation
from common.config import Codec
from common.errors import RunError
from common.protocol import HISTORY, VIEWS, content_hash
from tests.small import tries

SALT = rotation(0)
EXACT = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest error of a number, as a share of it."""
ERRORS = {"bits4": 0.015, "bits3": 0.05, "bits2": 0.18, "bits1": 0.75}
"""Squared error of rows of 64 numbers on average, as a share of their squared length, and some more for luck."""
READ = {"bits4": "ea2cdc826090", "bits3": "8a1ddcc6ad79", "bits2": "033e2db8d492", "bits1": "bb6a8a8cbcb2"}
"""What some bytes are read as, by the start of its hash."""
every_codec = pytest.mark.parametrize("codec", FORMATS)


@st.composite
def tables(draw: st.DrawFn) -> Tensor:
    """Tables of any shape and size of numbers, many of whose items are zero."""
    shape = (*draw(st.lists(st.integers(1, 3), max_size=1)), draw(st.integers(1, 40)), draw(st.integers(1, 70)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    table = torch.randn(shape, generator=generator) * 10.0 ** draw(st.integers(-2, 3))
    table[..., torch.rand(shape[-2], generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])), :] = 0
    return table


def there_and_back(table: Tensor, codec: Codec, salt: int = SALT) -> Tensor:
    return decode(encode({VIEWS: table}, codec, salt), {VIEWS: tuple(table.shape)}, codec, salt)[VIEWS]


def size(encoded: dict[str, Tensor]) -> int:
    return sum(value.numel() * value.itemsize for value in encoded.values())


@every_codec
@tries(25)
@given(table=tables())
def test_a_table_comes_back(codec: Codec, table: Tensor) -> None:
    back = there_and_back(table, codec)
    assert (back.dtype, back.shape) == (torch.float32, table.shape)
    assert torch.equal(back.any(-1), table.any(-1)), "what is zero stays zero, and nothing else becomes it"
    error = (back - table).abs()
    if codec in EXACT:
        assert (error <= EXACT[codec] * table.abs() + 2.0**-24 * (codec == "float16")).all()
    elif codec == "int8":
        assert (error <= table.abs().amax(-1, keepdim=True) / 127 * 0.5001).all()
    else:  # <row, decoded row> = |row|^2, and so no row comes back shorter than it was
        same = (back * table).sum(-1)
        torch.testing.assert_close(same, table.square().sum(-1), rtol=0.005, atol=0)


@every_codec
@tries(25)
@given(table=tables())
def test_what_travels_is_never_larger_than_all_of_it(codec: Codec, table: Tensor) -> None:
    everything = size(encode({VIEWS: torch.ones_like(table)}, codec, SALT))
    encoded = encode({VIEWS: table}, codec, SALT)
    assert size(encoded) <= everything
    there = int(table.any(-1).view(-1, table.shape[-2]).any(0).sum())
    if ITEMS in {name.removeprefix(VIEWS) for name in encoded}:
        assert size(encoded) == there * (everything // table.shape[-2] + 4)


@every_codec
def test_an_item_comes_back_the_same_whether_others_travel_or_not(codec: Codec) -> None:
    full = torch.randn(3, 50, 12, generator=torch.Generator().manual_seed(1))
    few = torch.zeros_like(full)
    few[:, [4, 17, 49]] = full[:, [4, 17, 49]]
    assert torch.equal(there_and_back(few, codec)[:, [4, 17, 49]], there_and_back(full, codec)[:, [4, 17, 49]])


@pytest.mark.parametrize("codec", ERRORS)
def test_errors_are_as_large_as_they_should_be_and_cancel_in_sums(codec: Codec) -> None:
    generator = torch.Generator().manual_seed(0)
    for table in (torch.randn(20, 64, generator=generator), torch.rand(20, 64, generator=generator) ** 8):
        rounds = torch.stack([there_and_back(table, codec, rotation(0, round)) for round in range(100)])
        length = table.square().sum()
        assert float((rounds - table).square().sum((1, 2)).mean() / length) < ERRORS[codec]
        assert float((rounds.mean(0) - table).square().sum() / length) < ERRORS[codec] / 50


@pytest.mark.parametrize("codec", ERRORS)
def test_every_machine_reads_the_same(codec: Codec) -> None:
    """Levels and signs are told apart by what they were when this was written, to the last bit."""
    plane = torch.arange(2 * 3 * int(codec[-1]) * 2, dtype=torch.uint8).view(2, 3, -1, 2) * 37
    scales = torch.tensor([1.0, 0.5, 3.0]).bfloat16().view(torch.int16).expand(2, 3)
    read = decode({VIEWS: plane, VIEWS + SCALES: scales}, {VIEWS: (2, 3, 11)}, codec, SALT)
    assert content_hash(read)[:12] == READ[codec]


def test_floats_of_all_items_travel_as_they_are() -> None:
    """The default wire is a plain array by its own name, and shared heads are in it."""
    tensors = {VIEWS: torch.randn(2, 5, 3), HISTORY: torch.randn(5, 3), "ncf_out": torch.randn(4)}
    for codec, dtype in (("float32", torch.float32), ("float16", torch.float16)):
        encoded = encode(tensors, codec, SALT)  # type: ignore[arg-type]
        assert {name: (value.dtype, value.shape) for name, value in encoded.items()} == {
            name: (dtype, value.shape) for name, value in tensors.items()
        }
        read = decode(encoded, {}, codec, SALT)  # type: ignore[arg-type]
        assert all(torch.equal(read[name], value.to(dtype).float()) for name, value in tensors.items())


@every_codec
def test_what_is_not_finite_is_not_hidden(codec: Codec) -> None:
    for bad in (torch.nan, torch.inf, -torch.inf):
        table = torch.ones(4, 8)
        table[2, 3] = bad
        assert not torch.isfinite(there_and_back(table, codec)[2]).all()


def few() -> Tensor:
    table = torch.zeros(2, 30, 8)
    table[:, [3, 9]] = 1.0
    return table


SPOILT = {
    "an item that is not there": {ITEMS: torch.tensor([3, 30], dtype=torch.int32)},
    "an item below 0": {ITEMS: torch.tensor([-1, 9], dtype=torch.int32)},
    "an item twice": {ITEMS: torch.tensor([9, 9], dtype=torch.int32)},
    "more items than rows": {ITEMS: torch.tensor([3, 9, 11], dtype=torch.int32)},
    "items that are no numbers": {ITEMS: torch.tensor([3.0, 9.0])},
    "items in a table": {ITEMS: torch.tensor([[3, 9]], dtype=torch.int32)},
    "no numbers": {"": None},
    "numbers of another table": {"": torch.zeros(10**6, 0, 8)},
    "numbers of another kind": {"": torch.zeros(2, 2, 8, dtype=torch.int64)},
    "nothing but items": {"": None, SCALES: None},
    "scales that are too many": {SCALES: torch.zeros(2, 30)},
}


@every_codec
@pytest.mark.parametrize("spoilt", SPOILT)
def test_parts_that_do_not_fit_are_refused(codec: Codec, spoilt: str) -> None:
    encoded = encode({VIEWS: few()}, codec, SALT)
    for part, value in SPOILT[spoilt].items():
        encoded.pop(VIEWS + part, None)
        if value is not None:
            encoded[VIEWS + part] = value
    with pytest.raises(RunError, match="'views'"):
        decode(encoded, {VIEWS: (2, 30, 8)}, codec, SALT)


@every_codec
def test_rows_that_do_not_say_of_which_items_are_no_table(codec: Codec) -> None:
    encoded = encode({VIEWS: few()}, codec, SALT)
    del encoded[VIEWS + ITEMS]
    if isinstance(FORMATS[codec], Float):  # then it is a table of two items, and `check_gradients` refuses it
        assert decode(encoded, {VIEWS: (2, 30, 8)}, codec, SALT)[VIEWS].shape == (2, 2, 8)
        return
    with pytest.raises(RunError, match="'views'"):
        decode(encoded, {VIEWS: (2, 30, 8)}, codec, SALT)


def test_a_table_nobody_asked_for_is_refused() -> None:
    with pytest.raises(RunError, match="'history'"):
        decode(encode({HISTORY: few()[0]}, "int8", SALT), {VIEWS: (2, 30, 8)}, "int8", SALT)


def test_rotations_undo_themselves() -> None:
    matrix = torch.ones(1, 1)
    while len(matrix) < 16:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hadamard(rows), rows @ matrix)
    torch.testing.assert_close(hadamard(hadamard(rows)), 16 * rows)
