"""Blocks of dimensions that people go by: how they are found from sums, how gates weigh them, and runs with both."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tessera.benchmarks.aspects import draw_world, find_blocks
from tessera.client.aspects.facets import BlockSums, asked_sum, gates
from tessera.client.histories import Histories, histories
from tessera.client.owner.ledger import Memory
from tessera.client.owner.policy import Policy
from tessera.client.owner.rules import Asked, Own, Sum, _aspects
from tessera.client.recommend import Personal
from tessera.common.config.loading import load_settings
from tessera.common.config.settings import Gate, Settings
from tessera.common.data.interactions import Split
from tessera.common.datasets import convert_aspects_shop
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.messages import ASPECTS, BLOCKS, HISTORY, VIEWS, FacetStep
from tessera.common.protocol.updates import Update
from tessera.deploy.executors import inline
from tessera.deploy.executors.run import make_job
from tessera.server.robust.claims import Claim, ExaggeratedError, check_claim
from tessera.server.views.facets import numbered, polar, put_together, settled, whitened
from tests.deploy.test_executors import assert_bitwise, last_checkpoint, silent
from tests.server.test_claims import task
from tests.support.splits import ragged, split_of

N_ITEMS, DIM, BLOCKED = 60, 6, torch.tensor([0.0, 0, 1, 1, 2, 2])
STEPS: tuple[FacetStep, ...] = ("spread", "independence", "together", "cohesion")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def people(split: Split) -> Histories:
    return histories(split).to(torch.device("cpu"), torch.float64)


def some() -> Split:
    return split_of(ragged(0, [10, 9, 5, 2, 1, 0], N_ITEMS), N_ITEMS)


def test_cohesion_in_a_block_is_that_of_pairs_and_by_chance_0_with_variance_1() -> None:
    table = drawn(3000, 8)
    known = people(split_of(ragged(0, [9] * 2000, 3000), 3000))
    found = BlockSums(known, table, numbered(8, 2)).cohesion()
    z = (table - table.mean(0))[known.items[:9], :4]
    covariance = torch.cov((table - table.mean(0))[:, :4].T, correction=0)
    pairs = sum(float(z[i] @ z[k]) for i in range(9) for k in range(9) if i != k)
    assert float(found[0, 0]) == pytest.approx(pairs / (2 * 9 * 8 * float((covariance @ covariance).trace())) ** 0.5)
    assert float(found.mean()) == pytest.approx(0, abs=0.06)
    assert float(found.var()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("gate", ["softmax", "james-stein"])
def test_gates_are_of_blocks_whatever_their_size_place_or_turn_and_of_what_is_shown(gate: Gate) -> None:
    known, table = people(some()).aged(0.5), drawn(N_ITEMS, DIM)
    table[:, 2:4] = table[:, 2:4] + 3 * table[:, :1].sign()
    found = gates(known, {HISTORY: table}, BLOCKED, gate, 0.5)
    turn = torch.block_diag(*(torch.linalg.qr(drawn(2, 2, seed=block)).Q for block in range(3)))
    torch.testing.assert_close(gates(known, {HISTORY: 7 * table @ turn + 2}, BLOCKED, gate, 0.5), found)
    order = torch.tensor([4, 5, 0, 1, 2, 3])
    torch.testing.assert_close(gates(known, {VIEWS: table[None, :, order]}, BLOCKED, gate, 0.5), found[:, order])
    assert torch.equal(found[-1], torch.ones(DIM, dtype=found.dtype)), "who has no event goes by no side"
    hidden = known.hidden(0.5, salt=3)
    kept = hidden.shown > 0
    offsets = torch.tensor([0, *(int(kept[: int(end)].sum()) for end in hidden.offsets[1:])])
    rest = replace(
        hidden, items=hidden.items[kept], owners=hidden.owners[kept], shown=hidden.shown[kept], offsets=offsets
    )
    torch.testing.assert_close(*(gates(one, {HISTORY: table}, BLOCKED, gate, 0.5) for one in (hidden, rest)))


def test_blocks_depend_on_people_and_not_on_how_they_are_dealt_to_devices() -> None:
    world = draw_world(3, people=200)
    into, offset = whitened(world.items, 24)
    white = world.items @ into + offset
    torch.testing.assert_close(white.T @ white / len(white), torch.eye(24, dtype=white.dtype), rtol=0, atol=1e-8)
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
    assert {frozenset((half // 3).tolist()) for half in order.chunk(2)} == {frozenset({0}), frozenset({1})}
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    torch.testing.assert_close(polar(3 * turn), turn)
    rotation = torch.linalg.qr(drawn(6, 6)).Q
    within = torch.block_diag(*(torch.linalg.qr(drawn(2, 2, seed=one)).Q for one in range(3)))
    torch.testing.assert_close(settled((rotation @ within)[:, [4, 5, 0, 1, 2, 3]], 3), settled(rotation, 3))
    torch.testing.assert_close(settled(rotation, 1).T @ settled(rotation, 1), torch.eye(6, dtype=rotation.dtype))


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_a_sum_over_people_that_they_can_give_and_a_larger_one_is_refused(step: FacetStep) -> None:
    split, table = some(), drawn(N_ITEMS, DIM).float()
    inputs = {ASPECTS + step: table, BLOCKS: BLOCKED.float()}
    whole = asked_sum(split, inputs)
    alone = sum((asked_sum(split.take(np.array([u])), inputs) for u in range(len(split.users))), Update())
    torch.testing.assert_close(alone.counts[ASPECTS + step], whole.counts[ASPECTS + step])
    assert whole.sums["users"] == 5
    claim = Claim(6.0, 27.0)
    check_claim(whole, task("aspects"), inputs, claim)
    with pytest.raises(ExaggeratedError, match="what its people go by"):
        check_claim(replace(whole, counts={ASPECTS + step: 1e9 + 0 * table[:DIM]}), task("aspects"), inputs, claim)
    with pytest.raises(DataError, match="names no step"):
        asked_sum(split, {BLOCKS: BLOCKED})


def test_a_device_answers_for_many_people_or_under_masks_and_about_no_item_alone() -> None:
    def found(table: torch.Tensor, people: int, masked: bool) -> list[str]:
        inputs = {ASPECTS + "spread": table, BLOCKS: BLOCKED}
        asked = Asked(task("aspects"), inputs, Own(people), Sum(people, 5, masked), Memory(), "ask", "members", "", 0.0)
        return [kind for kind, _ in _aspects(Policy(), asked)]

    table, lone = drawn(N_ITEMS, DIM), torch.eye(N_ITEMS, DIM)
    assert found(table, 1, False) == found(table, 20, False) == found(table, 5, True) == ["people"]
    assert found(table, 24, False) == found(table, 6, True) == []
    assert found(lone, 100, True) == found(table * torch.nan, 100, True) == ["basis"]


def shop_settings(*changes: str) -> Settings:
    return load_settings(Path(__file__).parents[2] / "benchmarks/perpeft/aspects.yaml", "inline", changes)


def test_facets_want_one_modality_and_blocks_of_one_size_and_a_gate_wants_facets() -> None:
    for change, why in (
        ("views.item_ids=true", "sides of one modality's features"),
        ("views.facets=5", "cannot be divided into 5"),
        ("views.facets=1 local.gate=softmax", "local.gate has no effect"),
        ("local.gate=james-stein local.gate_sharpness=0.3", "local.gate_sharpness has no effect"),
        ("privacy.clip=1 privacy.noise_multiplier=1", "does not noise the sums that find facets"),
    ):
        with pytest.raises(ConfigError, match=why):
            shop_settings(*change.split())


def test_in_a_run_kinds_are_found_on_any_nodes_and_under_masks_and_the_gate_ranks_by_them(tmp_path: Path) -> None:
    convert_aspects_shop(tmp_path / "shop", people=400, seed=1)
    kinds = pl.read_parquet(tmp_path / "shop" / "users.parquet")["kind"].to_numpy()
    base = ("server.optimizer=sgd", "evaluation.baselines=false")

    def run(name: str, nodes: int, *changes: str, rounds: int = 2, resume: bool = False) -> Path:
        settings = shop_settings(*base, f"rounds={rounds}", f"federation.nodes={nodes}", *changes)
        job = make_job(settings, tmp_path / "shop", tmp_path / name, resume=resume, overwrite=not resume)
        inline.execute(job, silent)
        return job.run_dir

    one, masked = run("one", 1, "evaluation.every=2"), run("masked", 4, "evaluation.every=2", "privacy.secure=true")
    for name, value in last_checkpoint(one).items():  # scores may be a hair apart: rounding moves a rank here and there
        torch.testing.assert_close(last_checkpoint(masked)[name], value, rtol=2e-3, atol=2e-3)
    whole = run("whole", 3)
    run("parts", 3, rounds=1)
    assert_bitwise(whole, run("parts", 3, resume=True))
    personal = Personal.open(next((tmp_path / "one").rglob("node-0")))
    groups = np.concatenate(
        [
            BlockSums(histories(split), personal.sent[HISTORY], personal.sent[BLOCKS]).cohesion().argmax(1).numpy()
            for split, _ in personal.people()
        ]
    )
    pure = sum(np.bincount(kinds[groups == group]).max() for group in np.unique(groups)) / len(kinds)
    assert pure >= 0.95
