"""Sides that people go by are found from sums over devices, in a world where they are known."""

import numpy as np
import pytest
import torch

from tessera.benchmarks.aspects import block_cohesion, draw_world, find_blocks, polar, put_together, rows, whitened
from tessera.client.histories import histories
from tests.support.splits import ragged, split_of


def test_cohesion_in_a_block_is_that_of_pairs_and_by_chance_0_with_variance_1() -> None:
    draw = torch.Generator().manual_seed(0)
    white = torch.randn(3000, 8, generator=draw, dtype=torch.float64)
    people = split_of(ragged(0, [9] * 2000, 3000), 3000)
    known = histories(people).to(torch.device("cpu"), torch.float64)
    found = block_cohesion(known, white, 2)
    z = white[known.items[:9], :4]
    pairs = sum(float(z[i] @ z[k]) for i in range(9) for k in range(9) if i != k)
    assert float(found[0, 0]) == pytest.approx(pairs / (2 * 9 * 8 * 4) ** 0.5)
    assert float(found.mean()) == pytest.approx(0, abs=0.06)
    assert float(found.var()) == pytest.approx(1, abs=0.15)


def test_blocks_depend_on_people_and_not_on_how_they_are_dealt_to_devices() -> None:
    world = draw_world(3, people=200)
    white = whitened(world.items)
    own = [histories(world.split.take(np.array(part))) for part in (range(200), range(70), range(70, 200))]
    whole, *parts = (one.to(torch.device("cpu"), white.dtype) for one in own)
    together, apart = find_blocks([whole], white, 4, 0), find_blocks(parts[::-1], white, 4, 0)
    torch.testing.assert_close(apart, together, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(together.T @ together, torch.eye(24, dtype=white.dtype))


def test_what_varies_together_stands_side_by_side() -> None:
    block = torch.ones(3, 3)
    shuffled = torch.tensor([4, 0, 2, 5, 1, 3])
    together = torch.block_diag(block, block)[shuffled][:, shuffled]
    order = shuffled[put_together(together, 2)]
    assert {frozenset((order[:3] // 3).tolist()), frozenset((order[3:] // 3).tolist())} == {
        frozenset({0}),
        frozenset({1}),
    }
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    torch.testing.assert_close(polar(3 * turn), turn)


def test_kinds_are_found_and_the_gate_ranks_as_their_own_side_does() -> None:
    found = rows(draw_world(0), 0)
    assert found["largest cohesion"]["purity"] >= 0.95
    assert found["k-means on tastes"]["purity"] < 0.5
    gate, alike = found["gate, softmax .5"], found["all dimensions alike"]
    assert gate["hr@50"] > alike["hr@50"] + 10
    assert gate["hr@50"] > found["oracle groups, found blocks"]["hr@50"] - 1.5
