"""What a node says of its people binds it: people's own answers always pass, and what no such people can give is refused."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.recommendation import _item_statistics, _power, blocks
from tessera.common.config.device import DeviceSettings
from tessera.common.metrics.ranking import MetricSums
from tessera.common.protocol.messages import BASIS, COHESION, COUNTS, Kind, Task
from tessera.common.protocol.updates import Update
from tessera.server.robust.claims import Claims, ExaggeratedError, check_claim
from tests.support.splits import ragged, settings, split_of, tries

N_ITEMS = 12
Change = Callable[[Update], Update]


def task(kind: Kind, weighting: str = "users") -> Task:
    own = DeviceSettings.of(settings(local={"weighting": weighting}))
    return Task(kind, "run", 0, (), ("views",), "0" * 64, own)


def answers(lengths: list[int], seed: int = 0, width: int = N_ITEMS) -> tuple[Update, Update, torch.Tensor]:
    """A node's item statistics, and its part of a power iteration for a basis with orthonormal columns."""
    split = split_of(ragged(seed, lengths, N_ITEMS), N_ITEMS)
    basis = torch.linalg.qr(torch.randn(N_ITEMS, width, generator=torch.Generator().manual_seed(seed))).Q
    product = sum((_power(block, basis) for block in blocks(split, 2)), Update())
    return _item_statistics(split, masked=False), product, basis


@tries(50)
@given(
    lengths=st.lists(st.integers(1, N_ITEMS), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    width=st.integers(1, N_ITEMS),
)
def test_what_people_answer_always_passes(lengths: list[int], seed: int, width: int) -> None:
    statistics, product, basis = answers(lengths, seed, width)
    check_claim(statistics, task("item_statistics"), {}, None)
    claims = Claims()
    claims.hear(1, statistics)
    check_claim(product, task("power"), {BASIS: basis}, claims.of(1))
    whole = Update(weight=float(len(lengths)), sums=MetricSums({"users": float(len(lengths))}))
    check_claim(whole, task("train"), {}, claims.of(1))
    check_claim(replace(whole, weight=float(sum(lengths))), task("train", "examples"), {}, claims.of(1))


def more(name: str, by: float) -> Change:
    return lambda update: replace(update, sums=update.sums + MetricSums({name: by}))


def counts(change: Callable[[torch.Tensor], torch.Tensor], name: str = COUNTS) -> Change:
    return lambda update: replace(update, counts={name: change(update.counts[name])})


LIES: Mapping[str, tuple[Kind, Change]] = {
    "a negative count": ("item_statistics", counts(lambda value: value - 9 * torch.eye(N_ITEMS)[0])),
    "an item's count is 30": ("item_statistics", counts(lambda value: torch.full_like(value, 30.0))),
    "the sum of its counts": ("item_statistics", more("events", -3.0)),
    "number of events": ("item_statistics", more("events", 500.0)),
    "with a test item": ("item_statistics", more("test", 5.0)),
    "a row of its power": ("power", counts(lambda value: 30 * value, BASIS)),
    "the trace": ("power", counts(lambda value: 1.2 * value, BASIS)),
    "not that of a symmetric": ("power", counts(lambda value: value.roll(1, 0), BASIS)),
    "not that of people's": ("power", counts(lambda value: -value, BASIS)),
    "less alike than": ("train", lambda update: Update(counts={COHESION: torch.tensor([[-0.1, 1.0], [4.0, 4.0]])})),
    "people with two": ("train", lambda update: Update(counts={COHESION: torch.tensor([[0.1, 1.0], [4.0, 5.0]])})),
    "wholly alike": ("train", lambda update: Update(counts={COHESION: torch.tensor([[0.1, 3.0], [4.0, 2.0]])})),
    "its weight is 5": ("train", lambda update: Update(weight=5.0)),
    "number of people is 5": ("evaluate", lambda update: Update(sums=MetricSums({"evaluated": 5.0}))),
    "test/all/users": ("evaluate", lambda update: Update(sums=MetricSums({"test/all/users": 5.0}))),
    "test/all/hr@5": (
        "evaluate",
        lambda update: Update(sums=MetricSums({"test/all/users": 4.0, "test/all/hr@5": 4.5})),
    ),
}


@pytest.mark.parametrize("said", LIES)
def test_what_no_such_people_can_give_is_refused_with_the_reason(said: str) -> None:
    kind, lie = LIES[said]
    statistics, product, basis = answers([2, 5, 3, 9])
    claims = Claims()
    claims.hear(1, statistics)
    honest = statistics if kind == "item_statistics" else product
    with pytest.raises(ExaggeratedError, match=said):
        check_claim(lie(honest), task(kind), {BASIS: basis}, claims.of(1))


def test_one_that_came_later_is_held_to_the_largest_of_the_others_and_new_users_are_in_no_claim() -> None:
    claims = Claims()
    for unit, lengths in enumerate(([2, 3], [1, 1, 1])):
        claims.hear(unit, answers(lengths)[0])
    check_claim(Update(weight=3.0), task("train"), {}, claims.of("later"))
    with pytest.raises(ExaggeratedError, match="its weight is 4, and its people can make it 3 at most"):
        check_claim(Update(weight=4.0), task("train"), {}, claims.of("later"))
    new = MetricSums({"test/new-users/users": 50.0, "test/new-users/hr@5": 20.0})
    check_claim(Update(sums=new), task("evaluate"), {}, claims.of("later"))
