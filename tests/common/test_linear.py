"""Gradients written by public linear maps: they add up, come back as their projection, and fit into 16 bits under masks."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tessera.common.errors import SecureSumError
from tessera.common.protocol.codecs import rotation
from tessera.common.protocol.linear import LinearPlan, lengths, linear_decode, linear_encode
from tessera.common.protocol.messages import HISTORY, VIEWS
from tessera.common.protocol.projection import SKETCH, Projection, expand, leading, start
from tessera.common.secure.fixed_point import add, from_words, to_words, upload_bytes, zeros
from tests.support.splits import tries

SALT = rotation(0, 3)


def gradients(seed: int, n_views: int = 3, n_items: int = 50, dim: int = 8) -> dict[str, Tensor]:
    """Views that nearly coincide, and items of very different size, as people have them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(n_items, 1, generator=generator) ** 12
    common = torch.randn(n_items, dim, generator=generator) * sizes
    shares = 1 + 0.1 * torch.rand(n_views, 1, 1, generator=generator)
    history = torch.randn(n_items, dim, generator=generator) * sizes
    return {VIEWS: common * shares, HISTORY: history, "head": torch.randn(5, generator=generator)}


def plan(projection: Projection | None, longest: float = 1e3) -> LinearPlan:
    return LinearPlan(projection, SALT, dict.fromkeys((VIEWS, HISTORY, "head", SKETCH), longest))


PLANS = st.sampled_from([plan(None), plan(Projection(start(3), 5)), plan(Projection(torch.eye(3)[:2], None))])


@tries(40)
@given(plan=PLANS, seed=st.integers(0, 99), shape=st.tuples(st.integers(1, 70), st.integers(1, 9)))
def test_it_is_linear_keeps_lengths_and_comes_back_as_the_projection(
    plan: LinearPlan, seed: int, shape: tuple[int, int]
) -> None:
    one, other = gradients(seed, 3, *shape), gradients(seed + 1, 3, *shape)
    wanted = plan.projection.project(one) if plan.projection else one
    written, more = linear_encode(one, plan), linear_encode(other, plan)
    both = linear_encode({name: one[name] - 2 * other[name] for name in one}, plan)
    for name, value in both.items():
        torch.testing.assert_close(value, written[name] - 2 * more[name], rtol=1e-5, atol=1e-5)
        assert value.shape == (wanted[name].numel(),)
    assert lengths(written) == pytest.approx(lengths(wanted), rel=1e-5)
    back = linear_decode(written, plan, one)
    assert back.keys() == wanted.keys()
    for name, value in back.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-6)
    again = linear_encode(wanted, plan)
    assert all(torch.equal(again[name], value) for name, value in written.items()), "what is projected stays so"


def test_rotated_numbers_look_normal_whatever_was_large() -> None:
    """So one scale suits all of them."""
    table = torch.zeros(3650, 64)
    table[7, 3], table[90] = 100.0, 20.0
    written = linear_encode({HISTORY: table}, plan(None))[HISTORY]
    deviation = table.norm() / table.numel() ** 0.5
    assert float(written.abs().max() / deviation) < 6
    assert float((written / deviation).pow(4).mean()) < 3.1, "no heavier tails than a normal distribution"
    assert not torch.equal(written, linear_encode({HISTORY: table}, replace(plan(None), salt=rotation(0, 4)))[HISTORY])


def test_what_is_too_long_is_scaled_down_and_what_is_not_finite_is_not_hidden() -> None:
    tight = plan(None, 1.0)
    long = {HISTORY: 50 * torch.ones(40, 8)}
    back = linear_decode(linear_encode(long, tight), tight, long)[HISTORY]
    torch.testing.assert_close(back / back.norm(), long[HISTORY] / long[HISTORY].norm())
    assert 1.0 < float(back.norm()) < 6.0
    to_words(linear_encode(long, tight), tight.layout(long), 3, 0)
    long[HISTORY][3, 4] = torch.nan
    with pytest.raises(SecureSumError, match="not finite"):
        to_words(linear_encode(long, tight), tight.layout(long), 3, 0)


@pytest.mark.parametrize(("n", "lost"), [(3, 3e-7), (10, 1e-5), (64, 0.003)])
def test_sums_in_16_bits_lose_what_they_should(n: int, lost: float) -> None:
    """Devices of very different size; the bound is the length of the round before, which was the same."""
    devices = [{name: value * (1 + i % 5) for name, value in gradients(i, 3, 400, 16).items()} for i in range(n)]
    total = {name: sum(device[name] for device in devices) for name in devices[0]}
    projection = Projection(leading(total[VIEWS].flatten(1), 0.99), 5)
    public = LinearPlan(projection, SALT, lengths(projection.project(total)))
    layout, words = public.layout(total), zeros(public.layout(total))
    for number, device in enumerate(devices):
        add(words, to_words(linear_encode(device, public), layout, n, number))
    back = linear_decode(from_words(words, layout, n), public, total)
    exact = projection.project(total)
    for name in (VIEWS, HISTORY):
        assert float((back[name] - exact[name]).square().sum() / exact[name].square().sum()) < lost, name
    expanded = expand(back, projection.directions)[VIEWS]
    assert float((expanded - total[VIEWS]).square().sum() / total[VIEWS].square().sum()) < 0.01 + lost
    numbers = {spec.name: spec.size for spec in layout}
    assert upload_bytes(layout) == 2 * (numbers[VIEWS] + numbers[HISTORY]) + 4 * (numbers["head"] + numbers[SKETCH])
