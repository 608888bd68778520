"""Events: order, duplicates, the rules of the split, and dealing users out."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.evaluation import baselines
from tessera.common.data.interactions import Interactions, Split, assign, from_frame, load_interactions
from tessera.common.data.targets import ABSENT
from tessera.common.errors import DataError
from tessera.common.metrics.names import TEST, VALIDATION
from tests.support.splits import settings, tries

N_ITEMS = 9
Event = tuple[str, int, int]


def interactions(*events: Event, parts: list[int] | None = None) -> Interactions:
    frame = pl.DataFrame(
        list(events), schema={"user": pl.String, "item": pl.Int64, "timestamp": pl.Int64}, orient="row"
    )
    return from_frame(frame if parts is None else frame.with_columns(pl.Series("part", parts)), N_ITEMS)


def items_of(split: Split, user: str) -> list[int]:
    row = split.users.index(user)
    return split.train_items[split.offsets[row] : split.offsets[row + 1]].tolist()


def test_events_are_sorted_by_time_and_ties_alike_everywhere() -> None:
    """Neither the order of the rows, nor other people, nor items added at the catalogue's end change a person's order."""
    tied = [("w", 5, 2), ("w", 8, 1), ("w", 3, 2), ("w", 0, 2)]
    events = interactions(*tied)
    assert events.items.tolist()[0] == 8
    assert (events.items.tolist(), held_out(events.split())) == ([8, 3, 0, 5], ([0], [5]))
    assert interactions(*tied[::-1]).items.tolist() == events.items.tolist()
    among = interactions(("v", 0, 2), ("v", 5, 2), *tied)
    assert among.take(np.array([1])).items.tolist() == events.items.tolist()
    assert from_frame(events.frame(), N_ITEMS + 5).items.tolist() == events.items.tolist()


@tries(10)
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_no_ranking_by_id_differs_from_chance_where_times_are_tied(seed: int, days: int) -> None:
    """Random items on few days: descending ids once put the target first. Three standard errors hold 997 times in 1,000; two
    rankings, two parts and ten draws are allowed for by four and a half."""
    n_users, n_items, n_events, k = 400, 40, 6, 10
    rng = np.random.default_rng(seed)
    rows = [
        (f"{seed}-{user}", int(item), int(day))
        for user in range(n_users)
        for item, day in zip(rng.choice(n_items, n_events, replace=False), rng.integers(0, days, n_events), strict=True)
    ]
    schema = {"user": pl.String, "item": pl.Int64, "timestamp": pl.Int64}
    split = from_frame(pl.DataFrame(rows, schema=schema, orient="row"), n_items).split()
    sums = baselines(split, settings(evaluation={"ks": [k]}).evaluation, {})
    for part, n_candidates in ((VALIDATION, n_items - n_events + 2), (TEST, n_items - n_events + 1)):
        chance = k / n_candidates
        error = (chance * (1 - chance) / n_users) ** 0.5
        for name in ("item-id", "item-id-descending"):
            assert abs(sums[f"{name}/{part}/all/hr@{k}"] / n_users - chance) < 4.5 * error
        assert sums[f"random/{part}/all/hr@{k}"] / n_users == pytest.approx(chance)


def test_targets_that_time_does_not_decide_on_are_counted() -> None:
    def tied(*times: int) -> tuple[bool, bool]:
        split = interactions(*(("u", item, time) for item, time in enumerate(times))).split()
        return bool(split.validation.tied[0]), bool(split.test.tied[0])

    assert [tied(0, 1, 2, 3), tied(0, 0, 1, 2), tied(0, 1, 1, 2), tied(0, 1, 2, 2), tied(1, 1, 1, 1)] == [
        (False, False),
        (False, False),
        (True, False),
        (True, True),
        (True, True),
    ]


def held_out(split: Split) -> tuple[list[int], list[int]]:
    return split.validation.first().tolist(), split.test.first().tolist()


def test_the_first_of_a_repeated_event_counts() -> None:
    events = interactions(("u", 5, 9), ("u", 1, 3), ("u", 5, 2))
    assert (events.items.tolist(), events.timestamps.tolist()) == ([5, 1], [2, 3])


def test_the_last_two_events_are_held_out() -> None:
    split = interactions(*(("u", item, item) for item in range(5))).split()
    assert (items_of(split, "u"), held_out(split)) == ([0, 1, 2], ([3], [4]))


@pytest.mark.parametrize("n_events", [1, 2])
def test_a_user_with_fewer_than_three_events_keeps_all_and_is_not_evaluated(n_events: int) -> None:
    short = [("short", item, item) for item in range(n_events)]
    split = interactions(*short, *(("long", item, item) for item in range(3))).split()
    assert items_of(split, "short") == list(range(n_events))
    assert held_out(split) == ([ABSENT, 1], [ABSENT, 2])
    assert items_of(split, "long") == [0]


def test_given_parts_are_kept_whatever_the_time() -> None:
    events = interactions(("u", 0, 5), ("u", 1, 1), ("u", 2, 2), ("v", 3, 1), parts=[0, 2, 1, 0])
    split = events.split(given=True)
    assert (items_of(split, "u"), items_of(split, "v")) == ([0], [3])
    assert held_out(split) == ([2, ABSENT], [1, ABSENT])


def test_given_parts_must_be_there() -> None:
    with pytest.raises(DataError, match="leave-one-out"):
        interactions(("u", 0, 0)).split(given=True)


def test_given_parts_may_hold_several_events_of_a_person() -> None:
    events = interactions(
        ("u", 0, 0), ("u", 1, 1), ("v", 2, 0), ("v", 3, 2), ("v", 4, 1), ("v", 5, 3), parts=[2, 2, 0, 2, 1, 2]
    )
    split = events.split(given=True).take(np.array([1, 0]))
    assert (split.test.items.tolist(), split.test.offsets.tolist()) == ([3, 5, 0, 1], [0, 2, 4])
    assert (split.validation.people, split.test.people, held_out(split)[0]) == (1, 2, [4, ABSENT])


def test_counts_are_of_training() -> None:
    split = interactions(*((user, item, item) for user in "uv" for item in range(4))).split()
    assert split.counts().tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0]


EVENTS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.integers(0, N_ITEMS - 1), st.integers(0, 3)), min_size=1, max_size=60
)


@tries(100)
@given(EVENTS, st.data())
def test_taking_users_and_splitting_commute(events: list[Event], data: st.DataObject) -> None:
    whole = interactions(*events)
    rows = np.array(data.draw(st.lists(st.sampled_from(range(len(whole.users))), unique=True, min_size=1)))
    first, second = whole.take(rows).split(), whole.split().take(rows)
    assert first.users == second.users == tuple(whole.users[row] for row in rows)
    for name in ("offsets", "train_items"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    for one, other in ((first.validation, second.validation), (first.test, second.test)):
        for name in ("items", "offsets", "tied"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@tries(100)
@given(EVENTS)
def test_a_split_loses_and_repeats_no_event(events: list[Event]) -> None:
    whole = interactions(*events)
    split = whole.split()
    for user in whole.users:
        row = whole.users.index(user)
        last = [item for items in held_out(split) if (item := items[row]) != ABSENT]
        kept = whole.items[whole.offsets[row] : whole.offsets[row + 1]].tolist()
        assert items_of(split, user) + last == kept
        assert set(kept) == {item for other, item, _ in events if other == user}


@tries(100)
@given(EVENTS)
def test_a_table_of_the_events_gives_the_same_events(events: list[Event]) -> None:
    whole = interactions(*events)
    again = from_frame(whole.frame(), N_ITEMS)
    assert again.users == whole.users
    for name in ("offsets", "items", "timestamps"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))


def test_take_keeps_parts() -> None:
    events = interactions(("u", 0, 0), ("v", 1, 0), ("v", 2, 1), parts=[0, 0, 2]).take(np.array([1]))
    assert events.parts is not None
    assert (events.users, events.items.tolist(), events.parts.tolist()) == (("v",), [1, 2], [0, 2])


def test_saved_events_are_loaded(tmp_path: Path) -> None:
    events = interactions(("u", 0, 0), ("v", 1, 0), ("v", 2, 1), parts=[0, 0, 2])
    events.save(tmp_path)
    loaded = load_interactions(tmp_path, N_ITEMS)
    assert loaded.frame().equals(events.frame())


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([("u", 0, 0), ("u", 9, 1)], "row 1 names item index 9, the catalogue has 9 items"),
        ([("u", -1, 0)], "row 0 names item index -1"),
        ([("u", 0, 0), (None, 1, 1)], "row 1 has no user"),
        ([("u", 0, None)], "row 0 has no timestamp"),
        ([], "there are no interactions"),
    ],
)
def test_malformed_events_are_refused(tmp_path: Path, events: list[Event], message: str) -> None:
    schema = {"user": pl.String, "item": pl.Int64, "timestamp": pl.Int64}
    pl.DataFrame(events, schema=schema, orient="row").write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(DataError, match=f"interactions.parquet: {message}"):
        load_interactions(tmp_path, N_ITEMS)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pl.Series("item", ["x"]), "item holds String, not whole numbers"),
        (pl.Series("timestamp", [0.5]), "timestamp holds Float64, not whole numbers"),
        (pl.Series("part", [3]), "row 0: part 3 is not one of 0, 1, 2"),
        (pl.Series("part", [None], dtype=pl.UInt8), "row 0 has no part"),
    ],
)
def test_columns_of_another_type_are_refused(column: pl.Series, message: str) -> None:
    frame = interactions(("u", 0, 0)).frame().with_columns(column)
    with pytest.raises(DataError, match=message):
        from_frame(frame, N_ITEMS)


def test_users_are_dealt_out_in_turn() -> None:
    assert [rows.tolist() for rows in assign("abcde", 2)] == [[0, 2, 4], [1, 3]]
    with pytest.raises(DataError, match="3 nodes are more than the 2 users"):
        assign("ab", 3)
