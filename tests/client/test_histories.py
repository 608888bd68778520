"""Ragged histories against dense loops."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.histories import Histories, histories, single
from tessera.common.data.targets import Targets
from tessera.common.utils import counter_rng
from tests.support.splits import ragged, split_of, tries

N_ITEMS = 12
SALT = counter_rng.key("test", 2)
TABLE = torch.randn(N_ITEMS, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
lengths_of_users = st.lists(st.integers(0, 6), min_size=1, max_size=6)


def build(items: list[list[int]], rate: float = 0.0, salt: int = SALT) -> Histories:
    return histories(split_of(items, N_ITEMS)).to(torch.device("cpu"), torch.float64).hidden(rate, salt)


def shown_items(items: list[list[int]], rate: float, salt: int = SALT) -> list[list[int]]:
    """Which events stay, one user and one item at a time."""
    found = []
    for user, row in enumerate(items):
        keys = counter_rng.user_keys([f"u{user}"])
        found.append(
            [
                item
                for item in row
                if float(counter_rng.uniform(counter_rng.key("hide", salt), keys, torch.tensor(item))) >= rate
            ]
        )
    return found


@tries(50)
@given(lengths_of_users, st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(0, 1000))
def test_totals_and_sizes_are_those_of_a_loop_over_users(lengths: list[int], rate: float, seed: int) -> None:
    items = ragged(seed, lengths, N_ITEMS)
    people, shown = build(items, rate, seed), shown_items(items, rate, seed)
    assert len(people) == len(items)
    assert people.lengths().tolist() == lengths
    assert people.sizes().tolist() == [max(len(row), 1) for row in shown]
    expected = torch.stack([sum((TABLE[item] for item in row), torch.zeros(5, dtype=torch.float64)) for row in shown])
    torch.testing.assert_close(people.total(TABLE), expected, rtol=1e-12, atol=1e-12)


@tries(30)
@given(lengths_of_users, st.sampled_from([0.0, 0.9]), st.integers(0, 1000))
def test_the_mask_has_every_item_of_a_user_hidden_or_not(lengths: list[int], rate: float, seed: int) -> None:
    items = ragged(seed, lengths, N_ITEMS)
    mask = build(items, rate).mask()
    assert mask.dtype == torch.bool
    assert [set(np.flatnonzero(row)) for row in mask.numpy()] == [set(row) for row in items]


def test_a_user_whose_events_are_all_hidden_has_an_empty_history() -> None:
    items = [[1, 2, 3], [4], [5, 6]]
    salt = next(
        salt for salt in range(1000) if not shown_items(items, 0.5, salt)[0] and shown_items(items, 0.5, salt)[2]
    )
    people = build(items, 0.5, salt)
    assert people.total(TABLE)[0].tolist() == [0] * 5
    assert people.sizes()[0] == 1, "so that it can divide"
    assert people.lengths().tolist() == [3, 1, 2]
    assert people.mask()[0].sum() == 3, "the loss still knows them"


def test_totals_carry_gradients_of_shown_events_only() -> None:
    people = build([[0, 1, 2, 3, 4, 5], [5]], 0.5)
    table = TABLE.clone().requires_grad_()
    people.total(table).sum().backward()
    shown = shown_items([[0, 1, 2, 3, 4, 5], [5]], 0.5)
    counts = [float(sum(row.count(item) for row in shown)) for item in range(N_ITEMS)]
    assert table.grad is not None
    assert table.grad[:, 0].tolist() == counts


def test_hiding_nothing_changes_nothing() -> None:
    people = build([[1, 2], [3]])
    assert people.hidden(0.0, SALT) is people
    assert people.shown.tolist() == [1, 1, 1]


def test_the_share_of_hidden_events_is_the_rate_and_changes_with_the_salt() -> None:
    many = histories(split_of(ragged(1, [100] * 200, 500), 500))
    for rate in (0.1, 0.5, 0.8):
        hidden = 1 - float(many.hidden(rate, SALT).shown.mean())
        assert abs(hidden - rate) < 5 * (rate * (1 - rate) / 20_000) ** 0.5
    first, second = many.hidden(0.5, SALT).shown, many.hidden(0.5, SALT + 1).shown
    assert abs(float((first == second).float().mean()) - 0.5) < 0.03


def test_hiding_again_starts_from_all_events() -> None:
    """Each epoch hides anew: what was hidden in one epoch may be shown in the next."""
    people = build([list(range(12))])
    once = people.hidden(0.9, SALT)
    assert torch.equal(once.hidden(0.5, SALT + 1).shown, people.hidden(0.5, SALT + 1).shown)


def test_what_is_hidden_of_a_user_depends_on_no_other() -> None:
    items = ragged(4, [5, 0, 7, 12], N_ITEMS)
    together = build(items, 0.5)
    for user, row in enumerate(items):
        alone = single(row, N_ITEMS, f"u{user}").hidden(0.5, SALT)
        assert alone.shown.tolist() == together.shown[together.owners == user].tolist()


def test_an_event_counts_less_the_more_came_after_it() -> None:
    people = build([[4, 2, 7], [], [5]])
    assert people.aged(0.0) is people
    aged = people.aged(1.0)
    assert aged.shown.tolist() == pytest.approx([1 / 3, 1 / 2, 1, 1])
    torch.testing.assert_close(aged.total(TABLE)[0], TABLE[4] / 3 + TABLE[2] / 2 + TABLE[7])
    assert aged.sizes().tolist() == pytest.approx([1 + 1 / 2 + 1 / 3, 1, 1]), "1 where there is nothing"
    assert aged.norms().tolist() == pytest.approx([(1 + 1 / 4 + 1 / 9) ** 0.5, 1, 1])
    assert build([[4, 2, 7]], 0.5).aged(1.0).shown.tolist() == (build([[4, 2, 7]], 0.5).shown * aged.shown[:3]).tolist()


@tries(30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 1000))
def test_a_cut_shows_what_came_before_and_asks_for_what_followed(lengths: list[int], per_user: int, seed: int) -> None:
    items = ragged(seed, lengths, N_ITEMS)
    before, asked = build(items).cuts(per_user, seed)
    assert len(before) == len(asked) == per_user * len(items)
    assert asked.lengths().tolist() == [1] * len(asked)
    for row in range(len(before)):
        whole, shown = items[row // per_user], before.items[before.owners == row].tolist()
        assert shown == whole[: len(shown)]
        assert asked.items[row] == whole[len(shown)]
        assert bool(shown) == (len(whole) > 1), "only a first event has nothing before it"


def test_cuts_fall_everywhere_and_are_a_users_own() -> None:
    items = ragged(4, [9, 2, 7], N_ITEMS)
    places = {len(row) for salt in range(50) for row in _cut(items[:1], 8, salt)}
    assert places == set(range(1, 9))
    assert _cut(items, 4, SALT)[8:] == _cut(items[2:], 4, SALT, first=2)
    assert _cut(items, 4, SALT) != _cut(items, 4, SALT + 1)


def _cut(items: list[list[int]], per_user: int, salt: int, first: int = 0) -> list[list[int]]:
    split = split_of(items, N_ITEMS)
    named = replace(split, users=tuple(f"u{first + row}" for row in range(len(items))))
    before, _ = histories(named).cuts(per_user, salt)
    return [before.items[before.owners == row].tolist() for row in range(len(before))]


def test_an_extra_item_comes_last_where_there_is_one() -> None:
    split = split_of([[4, 2], [], [7], [1, 3]], N_ITEMS)
    people = histories(split, Targets.single([9, 5, -1, 0]))
    rows = [people.items[people.owners == user].tolist() for user in range(4)]
    assert rows == [[4, 2, 9], [5], [7], [1, 3, 0]]
    assert people.offsets.tolist() == [0, 3, 4, 5, 8]
    assert people.shown.tolist() == [1] * 8
    assert people.mask().sum(1).tolist() == [3, 1, 1, 3]
    assert split.train_items.tolist() == [4, 2, 7, 1, 3], "the split is as it was"


def test_nobodys_extra_item_is_no_change() -> None:
    split = split_of([[4, 2], []], N_ITEMS)
    plain, extra = histories(split), histories(split, Targets.single([-1, -1]))
    assert torch.equal(plain.items, extra.items)
    assert torch.equal(plain.offsets, extra.offsets)


@pytest.mark.parametrize("items", [[], [3], [5, 1, 2]])
def test_a_single_users_history_is_that_of_the_cohort(items: list[int]) -> None:
    alone, together = single(items, N_ITEMS, "u1"), build([[8, 9], items])
    assert torch.equal(alone.keys[0], together.keys[1])
    assert alone.items.tolist() == items
    torch.testing.assert_close(alone.total(TABLE.float()).double()[0], together.total(TABLE)[1], rtol=1e-6, atol=1e-6)
