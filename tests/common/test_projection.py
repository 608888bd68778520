"""Gradients along few directions of the views: linear, never longer, and nearly all there is where views are alike."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tessera.common.config.device import DeviceSettings
from tessera.common.errors import DataError
from tessera.common.protocol.messages import HISTORY, VIEWS, Task, pack_task, unpack_task
from tessera.common.protocol.projection import SKETCH, Projection, expand, leading, sketch, start
from tests.support.catalogues import small_settings
from tests.support.splits import tries

TASK = Task("train", "run", 3, (0,), ("sum", "image", "id"), "c0", DeviceSettings.of(small_settings()))


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@st.composite
def projections(draw: st.DrawFn) -> Projection:
    n_views = draw(st.integers(1, 7))
    basis = torch.linalg.qr(drawn(draw(st.integers(0, 99)), n_views, n_views))[0]
    return Projection(basis[: draw(st.integers(1, n_views))], draw(st.sampled_from([None, 5])))


@tries(40)
@given(projection=projections(), seed=st.integers(0, 99), own=st.integers(0, 1))
def test_it_is_linear_and_never_longer_and_expands_to_the_part_in_its_span(
    projection: Projection, seed: int, own: int
) -> None:
    n_views = projection.n_views
    one, other = ({VIEWS: drawn(seed + i, n_views + own, 9, 4), HISTORY: drawn(seed + i, 9, 4)} for i in (0, 1))
    together = projection.project({name: one[name] + 3 * other[name] for name in one})
    apart = [projection.project(each) for each in (one, other)]
    for name, value in together.items():
        torch.testing.assert_close(value, apart[0][name] + 3 * apart[1][name])
    assert torch.equal(apart[0][VIEWS][-own or n_views :], one[VIEWS][n_views:]), "a device's own view stays as it is"
    shared = {**apart[0], VIEWS: apart[0][VIEWS][: len(projection.directions)]}
    sent = {name: value[:n_views] if name == VIEWS else value for name, value in one.items()}
    assert {name: value.shape for name, value in projection.outline(sent).items()} == {
        name: value.shape for name, value in shared.items()
    }
    assert shared[VIEWS].norm() <= sent[VIEWS].norm() * (1 + 1e-12)
    back = expand(shared, projection.directions)
    assert back.keys() == {VIEWS, HISTORY}
    if len(projection.directions) < n_views:  # all of them are the views themselves, which stay
        onto = projection.directions.T @ projection.directions
        torch.testing.assert_close(back[VIEWS], torch.tensordot(onto, sent[VIEWS], 1))


def test_a_sketch_tells_the_directions_that_hold_most() -> None:
    """Also those of which the directions before knew nothing."""
    shares = torch.tensor([[3.0, 2.0, 1.0, 1.0], [1.0, -1.0, 0.0, 0.5]], dtype=torch.float64)
    views = torch.einsum("cv,cid->vid", shares, torch.stack([10 * drawn(0, 300, 16), drawn(1, 300, 16)]))
    found = leading(sketch(views, 7), 0.98)
    assert found.shape == (1, 4)
    exact = torch.linalg.svd(views.flatten(1))[0][:, 0]
    assert abs(float(found[0].double() @ exact)) > 0.999
    assert leading(sketch(views, 7), 0.99999).shape == (2, 4)
    assert torch.equal(leading(sketch(drawn(2, 4, 300, 16), 7), 0.99), torch.eye(4)), (
        "views that have nothing in common"
    )


def test_squares_of_a_sketch_are_right_on_average() -> None:
    views = drawn(3, 3, 12, 4)
    grams = torch.stack([(one := sketch(views, salt)) @ one.T for salt in range(4000)])
    torch.testing.assert_close(grams.mean(0), views.flatten(1) @ views.flatten(1).T, rtol=0, atol=2.5)


def test_a_task_carries_directions_and_a_device_takes_only_such_as_keep_lengths() -> None:
    """Longer ones would make what a person says longer than clipping allows."""
    task = replace(TASK, components=tuple(map(tuple, leading(drawn(4, 3, 9), 0.6).tolist())))
    arrived = unpack_task(pack_task(task))[0]
    assert arrived == task
    projection = Projection.of(arrived)
    assert projection is not None
    assert torch.equal(projection.directions, torch.tensor(task.components))
    assert Projection.of(TASK) is None
    noised = small_settings(privacy={"clip": 1.0, "noise_multiplier": 0.5})
    quiet = Projection.of(replace(task, settings=DeviceSettings.of(noised)))
    assert quiet is not None
    assert quiet.salt is None
    assert SKETCH not in quiet.project({VIEWS: torch.ones(3, 9, 4)})
    for rows in (((2.0, 0.0, 0.0),), ((1.0, 0.0, 0.0), (1.0, 0.0, 0.0)), ((float("nan"), 0.0, 0.0),)):
        with pytest.raises(DataError, match="not orthonormal"):
            Projection.of(replace(task, components=rows))
    with pytest.raises(DataError, match="components of other views"):
        unpack_task(pack_task(replace(task, components=((1.0, 0.0),))))
    with pytest.raises(DataError, match="not of its 3 views"):
        Projection.of(replace(task, components=((1.0, 0.0),)))


def test_the_first_direction_is_the_mean_of_the_views() -> None:
    views = drawn(5, 1, 9, 4).expand(5, -1, -1).float()
    projection = Projection(start(5), None)
    torch.testing.assert_close(expand(projection.project({VIEWS: views}), projection.directions)[VIEWS], views)
