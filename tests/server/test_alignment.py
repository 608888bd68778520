"""Alignment: do A and B read and write the same in two towers, and does a P, Q trained in one work in the other?"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tessera.common.errors import ConfigError
from tessera.common.towers.projections import Projections, orthonormal, polar
from tessera.server.pretraining import alignment
from tessera.server.pretraining.alignment import ALIGNMENTS, Activations, difference, paper, random, whitened

WIDTHS = ((32, 40), (56, 64))
SEEN = 1000


def world(seed: int, widths: Sequence[tuple[int, int]] = WIDTHS) -> tuple[list[Activations], list[Tensor]]:
    """Towers that show the same 16 hidden things, each in its own basis with its own mean and noise.

    Answers are the hidden things that outputs show, so gradients are known. Also what a task adds to each tower's outputs: the
    same change of the hidden things.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    hidden = draw(2 * SEEN, 16)
    change = hidden @ (0.3 * draw(16, 16)) + 0.3 * draw(16)
    ways = torch.randn(len(hidden), 16, generator=torch.Generator().manual_seed(seed))
    towers, wanted = [], []
    for d_in, d_out in widths:
        reads, writes = draw(16, d_in) / 4, draw(16, d_out) / 4
        inputs = hidden @ reads + 0.1 * draw(len(hidden), d_in) + draw(d_in)
        outputs = hidden @ writes + 0.1 * draw(len(hidden), d_out) + draw(d_out)
        towers.append(Activations(inputs, outputs, ways @ torch.linalg.pinv(writes).T))
        wanted.append(change @ writes)
    return towers, wanted


def halves(towers: list[Activations]) -> tuple[list[Activations], list[Activations]]:
    parts = slice(SEEN), slice(SEEN, None)
    seen, unseen = (
        [
            Activations(*(seen[part] for seen in (tower.inputs, tower.outputs, tower.gradients) if seen is not None))
            for tower in towers
        ]
        for part in parts
    )
    return seen, unseen


def read(tower: Activations, given: Projections) -> Tensor:
    return tower.inputs @ given.a.T + given.offset


def branch(tower: Activations, given: Projections, p: Tensor, q: Tensor) -> Tensor:
    return (read(tower, given) @ p.T + q) @ given.b.T


def held_out_difference(name: str, seed: int, rank: int = 8) -> float:
    seen, unseen = halves(world(seed)[0])
    one, other = (read(tower, own) for tower, own in zip(unseen, ALIGNMENTS[name](seen, rank, seed), strict=True))
    return difference(one, other)


def gains(name: str, seed: int) -> list[float]:
    """Share of a task's error that P, Q trained in the first tower remove on new examples, in each tower."""
    towers, wanted = world(seed)
    seen, unseen = halves(towers)
    aligned = ALIGNMENTS[name](seen, 16, seed)
    p, q = torch.zeros(16, 16, requires_grad=True), torch.zeros(16, requires_grad=True)
    optimizer = torch.optim.Adam([p, q], 0.02)
    for _ in range(200):
        optimizer.zero_grad()
        (branch(seen[0], aligned[0], p, q) - wanted[0][:SEEN]).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        return [
            1 - difference(target[SEEN:], branch(tower, own, p, q)) ** 2
            for tower, own, target in zip(unseen, aligned, wanted, strict=True)
        ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_alignment_brings_two_towers_readings_together_and_whitening_most(seed: int) -> None:
    distances = {name: held_out_difference(name, seed) for name in ALIGNMENTS}
    assert distances["whitened"] == distances["effects"] < distances["paper"] < distances["random"]
    assert distances["whitened"] < 0.3


@pytest.mark.parametrize("seed", [0, 1])
def test_what_one_tower_learnt_helps_another_only_if_they_are_aligned(seed: int) -> None:
    own, transferred = gains("whitened", seed)
    assert own > 0.9
    assert transferred > 0.7
    assert gains("random", seed)[1] < 0
    assert gains("paper", seed)[1] < transferred  # its B stays as random as it was drawn


def test_by_their_effects_what_p_and_q_write_moves_all_answers_alike() -> None:
    seen, unseen = halves(world(0)[0])
    aligned = ALIGNMENTS["effects"](seen, 16, 0)
    moved = [tower.gradients @ own.b for tower, own in zip(unseen, aligned, strict=True) if tower.gradients is not None]
    assert difference(*moved) < 0.1
    own, transferred = gains("effects", 0)
    assert own > 0.9
    assert transferred > 0.7
    with pytest.raises(ConfigError, match="gradients"):
        ALIGNMENTS["effects"]([Activations(tower.inputs, tower.outputs) for tower in seen], 8, 0)


def test_rows_and_columns_are_orthonormal() -> None:
    seen, _ = halves(world(0)[0])
    for name in ("random", "paper"):
        for given in ALIGNMENTS[name](seen, 8, 0):
            torch.testing.assert_close(given.a @ given.a.T, torch.eye(8), rtol=0, atol=1e-5)
    for given in [*random(seen, 8, 0), *whitened(seen, 8)]:
        torch.testing.assert_close(given.b.T @ given.b, torch.eye(8), rtol=0, atol=1e-5)
    for tower, given in zip(seen, whitened(seen, 8), strict=True):
        readings = read(tower, given)
        torch.testing.assert_close(readings.mean(0), torch.zeros(8), rtol=0, atol=1e-4)
        assert (torch.cov(readings.T) - torch.eye(8)).abs().max() < 0.1  # whitened, but for the ridge
    assert torch.equal(random(seen, 8, 0)[0].a, random(seen, 8, 0)[0].a)
    assert not torch.equal(random(seen, 8, 0)[0].a, random(seen, 8, 1)[0].a)


@pytest.mark.parametrize("all_up_to", [1024, 0], ids=["computed", "searched"])
def test_two_towers_whitened_are_the_svd_of_the_whitened_cross_covariance(
    all_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "ALL_EIGENVECTORS", all_up_to)
    seen, _ = halves(world(3)[0])

    def root(inputs: Tensor) -> Tensor:
        covariance = torch.cov(inputs.double().T, correction=0)
        ridge = 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance))
        values, vectors = torch.linalg.eigh(covariance + ridge)
        return vectors @ torch.diag(values**-0.5) @ vectors.T

    one, other = (tower.inputs.double() - tower.inputs.double().mean(0) for tower in seen)
    roots = root(one), root(other)
    u, _, vt = torch.linalg.svd(roots[0] @ (one.T @ other / len(one)) @ roots[1])
    given = whitened(seen, 8)
    for mine, theirs in ((given[0].a, u[:, :8].T @ roots[0]), (given[1].a, vt[:8] @ roots[1])):
        sign = (mine.double() * theirs).sum(1, keepdim=True).sign()
        torch.testing.assert_close(mine.double() * sign, theirs, rtol=0, atol=1e-4)


def test_three_towers_agree_pairwise() -> None:
    seen, unseen = halves(world(1, (*WIDTHS, (48, 48)))[0])
    readings = [read(tower, own) for tower, own in zip(unseen, whitened(seen, 8), strict=True)]
    assert max(difference(one, other) for one in readings for other in readings) < 0.35


def test_the_papers_pivot_is_the_smallest_tower_and_keeps_its_start() -> None:
    seen, _ = halves(world(0)[0])
    start = random(seen[::-1], 8, 5)
    aligned = paper(seen[::-1], 8, 5)
    assert torch.equal(aligned[1].a, start[1].a)
    assert torch.equal(aligned[1].b, start[1].b)
    assert not torch.equal(aligned[0].a, start[0].a)


def test_what_cannot_be_aligned_is_refused() -> None:
    seen, unseen = halves(world(0)[0])
    for align in ALIGNMENTS.values():
        with pytest.raises(ConfigError, match="rank 33"):
            align(seen, 33, 0)
        with pytest.raises(ConfigError, match="same examples"):
            align([seen[0], Activations(unseen[1].inputs[:9], unseen[1].outputs[:9])], 4, 0)


def test_of_wide_layers_any_rank_that_fits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leading directions are searched one third of all at most: more are computed, as of narrow layers."""
    seen, _ = halves(world(0)[0])
    wanted = whitened(seen, 28, 0)
    monkeypatch.setattr(alignment, "ALL_EIGENVECTORS", 0)
    for found, same in zip(whitened(seen, 28, 0), wanted, strict=True):
        assert torch.equal(found.a, same.a)


def test_polar_is_the_closest_orthonormal_matrix() -> None:
    drawn = orthonormal(7, 3, 9)
    torch.testing.assert_close(drawn @ drawn.T, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(polar(torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ drawn), drawn, rtol=0, atol=1e-5)
