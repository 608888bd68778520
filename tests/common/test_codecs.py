"""How tables travel: near enough to what they were, right on average, and refused when they do not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tessera.common.config.settings import Codec
from tessera.common.errors import RunError
from tessera.common.protocol.codecs import (
    BITS,
    FORMATS,
    ITEMS,
    MIX,
    SCALES,
    Float,
    decode,
    encode,
    hadamard,
    rotation,
    shared_out,
)
from tessera.common.protocol.messages import HISTORY, VIEWS
from tests.support.splits import tries

SALT = rotation(0)
EXACT = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest error of a number, as a share of it."""
LOST = {"1%": 0.01, "4%": 0.04, "15%": 0.15}
"""What a table may lose of its sum of squares."""
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


def nobodys(table: Tensor) -> Tensor:
    """Which items are zero in all views."""
    return ~table.reshape(-1, *table.shape[-2:]).any(-1).any(0)


def size(encoded: dict[str, Tensor]) -> int:
    return sum(value.numel() * value.itemsize for value in encoded.values())


@every_codec
@tries(25)
@given(table=tables())
def test_a_table_comes_back(codec: Codec, table: Tensor) -> None:
    back = there_and_back(table, codec)
    assert (back.dtype, back.shape) == (torch.float32, table.shape)
    assert not back[..., nobodys(table), :].any(), "what is zero stays zero"
    error = (back - table).abs()
    if codec in EXACT:
        assert (error <= EXACT[codec] * table.abs() + 2.0**-24 * (codec == "float16")).all()
    elif codec == "int8":
        assert (error <= table.abs().amax(-1, keepdim=True) / 127 * 0.5001).all()
    elif table.ndim == 2:  # <row, row that comes back> = |row|^2, so none comes back shorter
        torch.testing.assert_close((back * table).sum(-1), table.square().sum(-1), rtol=0.005, atol=0)


@every_codec
@tries(25)
@given(table=tables())
def test_what_travels_is_never_larger_than_all_of_it(codec: Codec, table: Tensor) -> None:
    encoded, n_items = encode({VIEWS: table}, codec, SALT), table.shape[-2]
    there = len(encoded.get(VIEWS + ITEMS, torch.zeros(n_items)))
    by_item = sum(encoded[VIEWS + part].nbytes for part in ("", SCALES) if VIEWS + part in encoded)
    if VIEWS + ITEMS in encoded:
        assert there == int((~nobodys(table)).sum())
        assert by_item // max(there, 1) * n_items >= by_item + 4 * there
    else:
        assert by_item // n_items * n_items <= (by_item // n_items + 4) * int((~nobodys(table)).sum())


@every_codec
def test_an_item_comes_back_the_same_whether_others_travel_or_not(codec: Codec) -> None:
    full = torch.randn(50, 12, generator=torch.Generator().manual_seed(1))
    few = torch.zeros_like(full)
    few[[4, 17, 49]] = full[[4, 17, 49]]
    torch.testing.assert_close(there_and_back(few, codec)[[4, 17, 49]], there_and_back(full, codec)[[4, 17, 49]])


@pytest.mark.parametrize("codec", LOST)
def test_errors_are_as_large_as_they_should_be_and_cancel_in_sums(codec: Codec) -> None:
    generator = torch.Generator().manual_seed(0)
    normal, skew = torch.randn(20, 64, generator=generator), torch.rand(20, 64, generator=generator) ** 8
    for table in (normal, skew, torch.stack([normal, skew, normal + skew])):
        rounds = torch.stack([there_and_back(table, codec, rotation(0, round)) for round in range(100)])
        length = table.square().sum()
        assert float((rounds - table).square().flatten(1).sum(1).mean() / length) < 1.1 * LOST[codec]
        if table.ndim == 2:  # of several views, small components are left out, always the same
            assert float((rounds.mean(0) - table).square().sum() / length) < LOST[codec] / 50


@pytest.mark.parametrize("codec", LOST)
def test_views_that_resemble_each_other_cost_little_more_than_one(codec: Codec) -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(300, 64, generator=generator)
    seven = one * torch.rand(7, 1, 1, generator=generator) + 0.01 * torch.randn(7, 300, 64, generator=generator)
    assert size(encode({VIEWS: seven}, codec, SALT)) < 1.1 * size(encode({HISTORY: one}, codec, SALT))
    assert float((there_and_back(seven, codec) - seven).square().sum() / seven.square().sum()) < 1.1 * LOST[codec]


def test_bits_go_where_they_save_most() -> None:
    assert shared_out([1.0], 0.01) == [4]
    assert shared_out([100.0, 0.1, 0.01], 0.04) == [3]
    assert shared_out([10.0, 10.0, 0.1], 0.15) == [2, 2]
    assert shared_out([3.0, 2.0, 1.0], 0.01) == [4, 4, 4]
    assert shared_out([0.0, 0.0], 0.01) == []


def test_a_tenth_is_enough_for_views_and_gradients() -> None:
    """Gradients of seven views are all alike, the views are not."""
    generator = torch.Generator().manual_seed(0)
    views, gradient = (
        torch.randn(7, 200, 64, generator=generator),
        torch.randn(200, 64, generator=generator).expand(7, -1, -1),
    )
    down = size(encode({VIEWS: views, HISTORY: views[0]}, "4%", SALT))
    up = size(encode({VIEWS: gradient, HISTORY: gradient[0]}, "1%", SALT))
    assert down + up < 0.1 * 2 * 8 * 200 * 64 * 4


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
    "bits that nobody writes": {BITS: torch.tensor([9], dtype=torch.uint8)},
    "more components than views": {BITS: torch.tensor([4, 4, 4], dtype=torch.uint8)},
    "a mix of other views": {MIX: torch.zeros(1, 3)},
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


@every_codec
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 0, 5), (0, 2), (0, 30, 8), (2, 30, 0), (10**12, 5, 0)])
def test_shapes_without_numbers_are_no_surprise(codec: Codec, shape: tuple[int, ...]) -> None:
    """Floats of any shape are a table, which `check_gradients` refuses; the rest is refused here."""
    for kind in (torch.float32, torch.float16, torch.int16, torch.int8, torch.uint8):
        try:
            read = decode({VIEWS: torch.zeros(shape, dtype=kind)}, {VIEWS: (2, 30, 8)}, codec, SALT)
        except RunError:
            continue
        assert read[VIEWS].shape == shape


def test_a_table_nobody_asked_for_is_refused() -> None:
    with pytest.raises(RunError, match="'history'"):
        decode(encode({HISTORY: few()[0]}, "int8", SALT), {VIEWS: (2, 30, 8)}, "int8", SALT)


def test_rotations_undo_themselves() -> None:
    matrix = torch.ones(1, 1)
    while len(matrix) < 16:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    rows = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(hadamard(16), matrix)
    torch.testing.assert_close(rows @ hadamard(16) @ hadamard(16), 16 * rows)
