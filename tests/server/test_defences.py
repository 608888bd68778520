"""Combining the updates of units of which some lie: what streams is what sorting says, and liars move it little."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.updates import Update
from tessera.server.robust.combine import Combiner, Defended, Sum, TensorCombiner
from tessera.server.robust.row_cap import CappedSum
from tessera.server.robust.trim import TrimmedSum

ROWS, DIM = 3, 2
Unit = tuple[Tensor, float]
DEFENCES: tuple[Callable[[int], TensorCombiner], ...] = (TrimmedSum, CappedSum)


@st.composite
def units(draw: st.DrawFn, least: int = 1, bound: int = 3) -> list[Unit]:
    """Weights, and per-weight values that are often equal; all of it exact in floating point."""
    number = draw(st.integers(least, least + 6))
    values = draw(st.lists(st.integers(-bound, bound), min_size=number * ROWS * DIM, max_size=number * ROWS * DIM))
    weights = draw(st.lists(st.sampled_from([1.0, 2.0, 3.0, 7.0]), min_size=number, max_size=number))
    tensors = torch.tensor(values, dtype=torch.float64).view(number, ROWS, DIM)
    return [(value * weight, weight) for value, weight in zip(tensors, weights, strict=True)]


def combined(combiner: TensorCombiner, several: Sequence[Unit]) -> Tensor:
    for gradient, weight in several:
        combiner.add(gradient, weight)
    return combiner.total()


def naive_trim(several: Sequence[Unit], k: int) -> Tensor:
    """Coordinate by coordinate: sort, drop, and take the weighted mean of what is left, for the weight of all."""
    total = torch.zeros(ROWS, DIM, dtype=torch.float64)
    for row, column in ((row, column) for row in range(ROWS) for column in range(DIM)):
        said = [(float(gradient[row, column]) / weight, weight) for gradient, weight in several]
        said = sorted(said, reverse=True)[k:]
        said = sorted(said, key=lambda one: (one[0], -one[1]))[k:]
        mean = sum(value * weight for value, weight in said) / sum(weight for _, weight in said)
        total[row, column] = mean * sum(weight for _, weight in several)
    return total


def naive_cap(several: Sequence[Unit], k: int) -> Tensor:
    """Row by row: what is the k + 1-th longest, and everybody cut to it."""
    total = torch.zeros(ROWS, DIM, dtype=torch.float64)
    for row in range(ROWS):
        lengths = [float(gradient[row].norm()) / weight for gradient, weight in several]
        bound = sorted(lengths, reverse=True)[min(k, len(several) - 1)]
        for (gradient, _), length in zip(several, lengths, strict=True):
            total[row] += gradient[row] * (min(1.0, bound / length) if length else 1.0)
    return total


@settings(deadline=None)
@given(k=st.integers(0, 3), data=st.data())
def test_trimming_as_updates_come_in_equals_sorting_them_all(k: int, data: st.DataObject) -> None:
    several = data.draw(units(least=2 * k + 1))
    torch.testing.assert_close(combined(TrimmedSum(k), several), naive_trim(several, k))


@settings(deadline=None)
@given(k=st.integers(0, 3), several=units())
def test_capping_as_updates_come_in_equals_comparing_them_all(k: int, several: list[Unit]) -> None:
    torch.testing.assert_close(combined(CappedSum(k), several), naive_cap(several, k))


def test_of_too_few_the_middle_is_left() -> None:
    several = [(torch.tensor([[3.0 * value]]), 3.0) for value in (5.0, -1.0, 2.0, 100.0)]
    assert combined(TrimmedSum(3), several).item() == pytest.approx(12 * 3.5)
    assert combined(TrimmedSum(3), several[:2]).item() == pytest.approx(6 * 2.0)


@pytest.mark.parametrize("defence", DEFENCES)
@settings(deadline=None)
@given(k=st.integers(0, 2), several=units(), data=st.data())
def test_the_order_of_units_changes_nothing(
    defence: Callable[[int], TensorCombiner], k: int, several: list[Unit], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(several))
    torch.testing.assert_close(combined(defence(k), several), combined(defence(k), shuffled))


lies = st.floats(-1e30, 1e30).map(lambda value: torch.full((ROWS, DIM), value, dtype=torch.float64))


@settings(deadline=None)
@given(k=st.integers(1, 2), data=st.data(), lie=lies, weight=st.sampled_from([0.001, 1.0, 7.0]))
def test_liars_move_nothing_beyond_what_honest_units_say(
    k: int, data: st.DataObject, lie: Tensor, weight: float
) -> None:
    honest = data.draw(units(least=k + 1))
    everybody = data.draw(st.permutations([*honest, *[(lie, weight)] * k]))
    whole = sum(weight for _, weight in everybody)
    said = torch.stack([gradient / weight for gradient, weight in honest])
    trimmed, capped = (combined(defence(k), everybody) / whole for defence in DEFENCES)
    assert (trimmed <= said.amax(0) + 1e-9).all()
    assert (trimmed >= said.amin(0) - 1e-9).all()
    assert (capped.norm(dim=-1) <= said.norm(dim=-1).amax(0) + 1e-9).all()


@pytest.mark.parametrize("defence", DEFENCES)
def test_everything_but_gradients_is_added_up_and_who_has_no_weight_has_no_say(
    defence: Callable[[int], TensorCombiner],
) -> None:
    sums = MetricSums({"users": 2.0})
    alike = Update({"views": torch.ones(1, ROWS, DIM)}, 2.0, sums, {"counts": torch.ones(ROWS)})
    silent = Update({"views": torch.full((1, ROWS, DIM), 9.0)}, 0.0, sums)
    plain, defended = (
        _total(made, [alike, alike, silent, alike, Update()]) for made in (Sum(), Defended(partial(defence, 1)))
    )
    assert defended.weight == plain.weight == 6.0
    assert defended.sums == plain.sums
    assert torch.equal(defended.counts["counts"], plain.counts["counts"])
    torch.testing.assert_close(defended.gradients["views"], torch.full((1, ROWS, DIM), 3.0))


def _total(made: Combiner, updates: Sequence[Update]) -> Update:
    for update in updates:
        made.add(update)
    return made.total()
