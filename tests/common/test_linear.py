"""Tables turned by a public rotation: they add up, come back, and fit into 16 bits under masks; nothing overflows unseen."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.codecs import rotation
from tessera.common.protocol.figures import NONFINITE, SCALED
from tessera.common.protocol.linear import rotated, turned_back
from tessera.common.protocol.masked.masking import of_values, terms, to_values
from tessera.common.protocol.messages import HISTORY, VIEWS, Masking
from tessera.common.protocol.projection import SKETCH, Projection, expand, leading
from tessera.common.protocol.updates import Update
from tessera.common.secure.fixed_point import Spec, add, from_words, to_words, upload_bytes, zeros
from tessera.server.secure.bounds import Bounds
from tests.common.test_masking import TASK
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


def added(updates: list[Update]) -> Update:
    return sum(updates, Update())


def short(sums: list[Update], example: Update) -> tuple[Spec, ...]:
    """The tables of a round after these sums."""
    bounds = Bounds()
    bounds.learn(sums)
    return bounds.tables({name: value.shape for name, value in example.gradients.items()}, 5.0, True)


def summed(updates: list[Update], tables: tuple[Spec, ...]) -> Update:
    """What a group adds up to: as under masks, which cancel out."""
    agreed = terms(replace(TASK, masking=Masking(0, (0,), tables)), "shared", {})
    words, n = zeros(agreed.layout), len(updates)
    for number, update in enumerate(updates):
        add(words, to_words(to_values(update, agreed), agreed.layout, n, number))
    return of_values(from_words(words, agreed.layout, n), agreed)


@tries(40)
@given(seed=st.integers(0, 99), shape=st.lists(st.integers(0, 70), min_size=1, max_size=3))
def test_turning_is_linear_keeps_lengths_and_comes_undone(seed: int, shape: list[int]) -> None:
    one, other = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    both = rotated(one - 2 * other, SALT, VIEWS)
    torch.testing.assert_close(both, rotated(one, SALT, VIEWS) - 2 * rotated(other, SALT, VIEWS), rtol=1e-5, atol=1e-5)
    assert float(both.norm()) == pytest.approx(float((one - 2 * other).norm()), rel=1e-5)
    torch.testing.assert_close(turned_back(both, SALT, VIEWS), one - 2 * other, rtol=1e-5, atol=1e-5)


def test_turned_numbers_look_normal_whatever_was_large() -> None:
    """So one bound suits all of them."""
    table = torch.zeros(3650, 64)
    table[7, 3], table[90] = 100.0, 20.0
    turned = rotated(table, SALT, HISTORY)
    deviation = table.norm() / table.numel() ** 0.5
    assert float(turned.abs().max() / deviation) < 6
    assert float((turned / deviation).pow(4).mean()) < 3.1, "no heavier tails than a normal distribution"
    assert not torch.equal(turned, rotated(table, rotation(0, 4), HISTORY))
    assert not torch.equal(turned, rotated(table, SALT, VIEWS))


@tries(40)
@given(
    n=st.integers(3, 64),
    seed=st.integers(0, 10**6),
    far=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1e4, 1e30, float("inf"), float("nan")]), min_size=3, max_size=8),
)
def test_whatever_devices_send_a_short_sum_is_theirs_or_says_whose_it_is_not(
    n: int, seed: int, far: list[float]
) -> None:
    """Devices as much longer than the last sum as `far` says: no sum overflows; what is too long is scaled and counted."""
    before = [Update(gradients(seed + i), 1.0) for i in range(n)]
    tables = short([added(before)], before[0])
    assert {spec.name: spec.kind for spec in tables} == {
        "gradients/views": "short",
        "gradients/history": "short",
        "gradients/head": "table",
    }
    length = float(added(before).gradients[VIEWS].norm())
    now = [replace(update, sums=MetricSums({"users": 1.0})) for update in before]
    for at, times in enumerate(far[:n]):
        own = before[at].gradients
        longer = {
            VIEWS: own[VIEWS] / own[VIEWS].norm() * length * times,
            HISTORY: own[HISTORY],
            "head": own["head"] * 0,
        }
        now[at] = replace(now[at], gradients=longer)
    found = summed(now, tables)
    finite = [update for update in now if bool(torch.isfinite(update.gradients[VIEWS]).all())]
    fits = [update for update in finite if float(update.gradients[VIEWS].norm()) < 2.1 * length]
    assert found.sums["users"] == n
    assert found.sums[NONFINITE] == n - len(finite)
    assert found.sums[SCALED] == len(finite) - len(fits)
    assert found.weight == len(finite)
    if not finite:
        assert not found.gradients
    elif len(fits) == len(finite):
        lost = found.gradients[VIEWS] - added(finite).gradients[VIEWS]
        assert float(lost.norm()) <= 1e-3 * n**1.5 * length
    else:
        assert float(found.gradients[VIEWS].norm()) < 2.1 * 6 * n * length, (
            "what is too long counts no more than it may"
        )


@pytest.mark.parametrize(("n", "lost"), [(3, 2e-6), (16, 2e-4), (64, 0.01)])
def test_short_sums_lose_what_they_should(n: int, lost: float) -> None:
    """Devices of very different size, as large together as the round before; along one direction or two of three."""
    devices = [{name: value * (1 + i % 5) for name, value in gradients(i, 3, 400, 16).items()} for i in range(n)]
    total = added([Update(device, 1.0) for device in devices]).gradients
    projection = Projection(leading(total[VIEWS].flatten(1), 0.99), 5)
    updates = [Update(projection.project(device), 1.0) for device in devices]
    exact, tables = added(updates), short([added(updates)], updates[0])
    back = summed(updates, tables)
    for name in (VIEWS, HISTORY):
        left, wanted = back.gradients[name] - exact.gradients[name], exact.gradients[name]
        assert float(left.square().sum() / wanted.square().sum()) < lost, name
    expanded = expand(back.gradients, projection.directions)[VIEWS]
    assert float((expanded - total[VIEWS]).square().sum() / total[VIEWS].square().sum()) < 0.01 + lost
    sizes = {name: value.numel() for name, value in updates[0].gradients.items()}
    assert upload_bytes(tables) == 2 * (sizes[VIEWS] + sizes[HISTORY]) + 4 * (sizes["head"] + sizes[SKETCH])


def test_words_are_of_32_bits_until_a_sum_says_how_long_tables_are() -> None:
    example = Update(gradients(0), 1.0)
    assert {spec.kind for spec in short([], example)} == {"table"}
    empty = replace(example, gradients={**example.gradients, HISTORY: torch.zeros(50, 8)})
    kinds = {spec.name: spec.kind for spec in short([empty], example)}
    assert kinds["gradients/views"] == "short"
    assert kinds["gradients/history"] == "table"
