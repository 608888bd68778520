"""Private state on the device: found again by round, kept as long as a resumed run may ask for it, and nobody else's."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client import cohort
from tessera.client.private_state import PrivateState, Store
from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.errors import DataError
from tessera.common.protocol.messages import Task
from tessera.common.utils.atomic_files import write_tensors
from tests.support.splits import settings, tries

USERS = ("ann", "bob", "cat")
VIEWS = torch.zeros(2, 5, 3)


def state_of(mark: float, users: tuple[str, ...] = USERS) -> PrivateState:
    """A state that can be told from another by one number."""
    return PrivateState(
        users, {"user": torch.full((len(users), 2), float(mark))}, {"steps": torch.full((len(users),), float(mark))}
    )


def mark_of(state: PrivateState | None) -> float | None:
    return None if state is None else float(state.parameters["user"][0, 0])


def kept(store: Store) -> set[int]:
    return {int(path.stem.removeprefix("round-")) for path in store.folder.rglob("round-*.safetensors")}


def task(round: int, kind: str = "train", **groups: object) -> Task:
    return Task(kind, "run", round, (0,), ("sum", "id"), "", DeviceSettings.of(settings(**groups)))  # type: ignore[arg-type]


def fresh(device: RecommendationClient, users: tuple[str, ...] = USERS, **groups: object) -> PrivateState:
    return device.state(task(1, **groups), users, 0, VIEWS)


def save(device: RecommendationClient, round: int, state: PrivateState) -> None:
    save_tidily(Store(device.private("run")), 0, round, (0,), state)


def save_tidily(store: Store, block: int, round: int, durable: tuple[int, ...], state: PrivateState) -> None:
    """A round of a device with one block."""
    store.save(block, round, state)
    store.tidy(round, durable)


def assert_same(left: PrivateState, right: PrivateState) -> None:
    assert left.users == right.users
    for mine, other in ((left.parameters, right.parameters), (left.optimizer, right.optimizer)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    draws = torch.Generator().manual_seed(1)
    parameters = {"router.scale": torch.randn(3, 2, 4, generator=draws), "user": torch.randn(3, 4, generator=draws)}
    moments = {"steps": torch.tensor([0.0, 3.0, 1.0]), "mean.user": torch.randn(3, 4, generator=draws)}
    state = PrivateState(('a"b', "ü/\n", ""), parameters, moments)
    store = Store(tmp_path)
    save_tidily(store, 2, 7, (0,), state)
    found = store.load(2, 8)
    assert found is not None
    assert_same(found, state)


def test_the_newest_round_before_the_one_asked_for_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for round in (2, 5, 9):
        save_tidily(store, 0, round, (2, 5, 9), state_of(round))
    wanted = {1: None, 2: None, 3: 2, 5: 2, 6: 5, 9: 5, 10: 9, 1000: 9}
    assert {before: mark_of(store.load(0, before)) for before in wanted} == wanted


def test_blocks_and_runs_do_not_mix(tmp_path: Path) -> None:
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    one.save(0, 1, state_of(1))
    one.save(1, 1, state_of(2, ("dan",)))
    assert (mark_of(one.load(0, 9)), mark_of(one.load(1, 9)), one.load(2, 9)) == (1, 2, None)
    assert other.load(0, 9) is None


def test_without_checkpoints_only_the_last_round_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for round in range(1, 6):
        save_tidily(store, 0, round, (0,), state_of(round))
    assert kept(store) == {5}


def test_a_checkpoint_without_a_state_of_its_own_keeps_the_one_before(tmp_path: Path) -> None:
    """Nobody of the block took part in rounds 4 to 6, so a run that resumes at 6 needs the state of 3."""
    store = Store(tmp_path)
    save_tidily(store, 0, 3, (2,), state_of(3))
    save_tidily(store, 0, 7, (6,), state_of(7))
    save_tidily(store, 0, 8, (6,), state_of(8))
    assert kept(store) == {3, 8}
    assert mark_of(store.load(0, 7)) == 3


def test_a_run_taken_up_at_an_earlier_round_finds_that_rounds_state(tmp_path: Path) -> None:
    """The server's checkpoint is of round 10, the device had gone on to 14."""
    store = Store(tmp_path)
    for round in range(8, 15):
        durable = (5,) if round <= 10 else (5, 10)
        save_tidily(store, 0, round, durable, state_of(round))
    assert mark_of(store.load(0, 11)) == 10
    save_tidily(store, 0, 11, (5, 10), state_of(-11))
    assert mark_of(store.load(0, 12)) == -11, "not the state of the run that was killed"
    assert kept(store) == {10, 11}, "rounds 12 to 14 never happened"


@tries(40)
@given(
    takes_part=st.lists(st.booleans(), min_size=30, max_size=30),
    every=st.integers(1, 5),
    kills=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=6),
)
def test_every_round_finds_the_state_of_the_rounds_before_it(
    takes_part: list[bool], every: int, kills: list[tuple[int, bool]]
) -> None:
    """A run is killed time and again after some rounds, and goes on from the newest checkpoint or, where a kill has spoilt
    that one, from the one before. Whatever is pruned, a round finds what an unpruned record of the same run holds."""
    record: dict[int, float] = {}
    checkpoints: list[int] = []
    spoilt: set[int] = set()
    with TemporaryDirectory() as folder:
        store, start = Store(Path(folder)), 0
        for stretch, spoils in kills:
            last = min(start + stretch, len(takes_part))
            for round in range(start + 1, last + 1):
                assert mark_of(store.load(0, round)) == newest(record, round - 1)
                if takes_part[round - 1]:
                    record[round] = 1000.0 * len(record) + round
                    durable = tuple(checkpoints) or (0,)
                    save_tidily(store, 0, round, durable, state_of(record[round]))
                    needed = {max((past for past in record if past <= safe), default=round) for safe in durable}
                    assert {past for past in kept(store) if past <= round} == needed | {round}
                    assert max(kept(store)) <= max(round, *durable), "later rounds never happened"
                if round % every == 0:
                    checkpoints, spoilt = sorted({*checkpoints, round})[-3:], spoilt - {round}
            spoilt |= {checkpoints[-1]} if spoils and checkpoints else set()
            start = max((round for round in checkpoints if round not in spoilt), default=0)
            record = {past: mark for past, mark in record.items() if past <= start}


def newest(record: dict[int, float], last: int) -> float | None:
    """What the newest round up to `last` left."""
    return record[max(past for past in record if past <= last)] if any(past <= last for past in record) else None


def test_users_who_take_part_are_put_back_in_their_rows() -> None:
    state, rows = state_of(0), torch.tensor([2, 0])
    taken = state.take(rows)
    assert taken.users == ("cat", "ann")
    moved = PrivateState(
        taken.users, {"user": torch.tensor([[3.0, 3.0], [1.0, 1.0]])}, {"steps": torch.tensor([3.0, 1.0])}
    )
    after = state.put(rows, moved)
    assert after.parameters["user"].tolist() == [[1, 1], [0, 0], [3, 3]]
    assert after.optimizer["steps"].tolist() == [1, 0, 3]
    assert mark_of(state) == 0, "the old state is as it was"


def test_a_device_takes_up_its_own_state(tmp_path: Path) -> None:
    device = RecommendationClient(tmp_path)
    state = fresh(device)
    assert_same(state, cohort.start_state(USERS, settings().local, VIEWS, 0))
    moved = PrivateState(USERS, {name: value + 1 for name, value in state.parameters.items()}, state.optimizer)
    save(device, 4, moved)
    assert_same(device.state(task(5), USERS, 0, VIEWS), moved)
    assert_same(device.state(task(4, "evaluate"), USERS, 0, VIEWS), moved)
    assert_same(device.state(task(4), USERS, 0, VIEWS), state)
    assert_same(device.state(replace(task(5), run="other"), USERS, 0, VIEWS), state)


@tries(60)
@given(
    rounds=st.lists(
        st.tuples(
            st.lists(st.sampled_from("abcdefg"), unique=True, min_size=1),
            st.integers(1, 4),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    ),
)
def test_everybody_keeps_their_own_state_whoever_comes_goes_or_stands_beside_them(
    rounds: list[tuple[list[str], int, bool, bool]],
) -> None:
    """Each round other people are here, cut into blocks of another size, and of some blocks nobody takes part. Everybody finds
    what their own newest round left, of the last round and of the one that a resumed run goes back to."""
    records: list[dict[str, float]] = [{}]
    with TemporaryDirectory() as folder:
        device = RecommendationClient(Path(folder))
        store, start, safe = Store(device.private("run")), fresh(device, ("nobody",)), 0

        def found(users: list[str], before: int) -> dict[str, float]:
            kept = device.state(replace(task(before)), tuple(users), 0, VIEWS)
            assert kept.users == tuple(users)
            return {user: float(kept.parameters["router.bias"][row, 0]) for row, user in enumerate(users)}

        untrained = float(start.parameters["router.bias"][0, 0])
        for round, (people, size, idle, checkpoint) in enumerate(rounds, 1):
            now = dict(records[-1])
            assert found(people, round) == {user: now.get(user, untrained) for user in people}
            blocks = [people[at : at + size] for at in range(0, len(people), size)]
            for number, block in enumerate(blocks[: len(blocks) - idle]):
                kept = device.state(task(round), tuple(block), number, VIEWS)
                marks = torch.tensor([100.0 * round + ord(user) for user in block])
                moved = kept.parameters | {"router.bias": marks[:, None].expand(-1, 2)}
                store.save(number, round, replace(kept, parameters=moved))
                now |= {user: 100.0 * round + ord(user) for user in block}
            store.tidy(round, (safe,))
            records.append(now)
            safe = round if checkpoint else safe
            for past in (safe, round):
                assert found(people, past + 1) == {user: records[past].get(user, untrained) for user in people}


def test_files_of_blocks_that_are_no_more_go_with_their_last_use(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for block, user in enumerate(USERS):
        store.save(block, 1, state_of(1, (user,)))
    save_tidily(store, 0, 2, (1,), state_of(2))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 4, "a resumed run may go back to round 1"
    save_tidily(store, 0, 3, (2,), state_of(3))
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "block-0000",
        "block-0000/round-000002.safetensors",
        "block-0000/round-000003.safetensors",
    ]


@pytest.mark.parametrize("change", [{"backbone": "fedavg"}, {"optimizer": "sgd"}, "more views", "wider views"])
def test_the_state_of_another_model_is_refused(change: dict[str, str] | str, tmp_path: Path) -> None:
    device = RecommendationClient(tmp_path)
    save(device, 1, fresh(device))
    local = change if isinstance(change, dict) else {}
    views = {"more views": torch.zeros(3, 5, 3), "wider views": torch.zeros(2, 5, 4)}.get(str(change), VIEWS)
    with pytest.raises(DataError, match="of another model"):
        device.state(task(2, local=local), USERS, 0, views)


@pytest.mark.parametrize("length", [0, 5, 100, -1])
def test_a_truncated_state_is_set_aside_for_the_one_before(
    length: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    for round in (3, 4):
        save_tidily(store, 0, round, (3,), state_of(round))
    path = next(tmp_path.rglob("round-000004.safetensors"))
    path.write_bytes(path.read_bytes()[:length])
    assert mark_of(store.load(0, 5)) == 3
    assert f"{path} is truncated" in caplog.text
    assert path.with_name(path.name + ".corrupt").exists()
    save_tidily(store, 0, 5, (3,), state_of(5))
    assert mark_of(store.load(0, 6)) == 5


@pytest.mark.parametrize("last", [4, 1])
def test_whoever_is_looked_for_is_read_and_no_others(last: int, tmp_path: Path) -> None:
    """The last file of their block, or one of long ago: of the others' files only the heads are looked at."""
    store = Store(tmp_path)
    store.save(0, last, state_of(last, ("ann",)))
    for block, user in ((1, "bob"), (2, "cat")):
        store.save(block, 4, state_of(4, (user,)))
        path = tmp_path / f"block-{block:04d}" / "round-000004.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert mark_of(store.find(("ann",), 5, 0)) == last
    assert not list(tmp_path.rglob("*.corrupt"))
    with pytest.raises(DataError, match="no earlier state is left"):
        store.find(("ann", "bob"), 5, 0)


def test_nobody_starts_afresh_where_no_state_is_whole_until_its_owner_says_so(tmp_path: Path) -> None:
    device = RecommendationClient(tmp_path)
    save(device, 3, fresh(device))
    path = next(tmp_path.rglob("round-000003.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    for round in (4, 5):
        with pytest.raises(
            DataError, match=r"round-000003\.safetensors\.corrupt is damaged and no earlier state is left"
        ):
            device.state(task(round), USERS, 0, VIEWS)
    assert_same(device.state(task(3), USERS, 0, VIEWS), fresh(device))
    path.with_name(path.name + ".corrupt").unlink()
    assert_same(device.state(task(4), USERS, 0, VIEWS), fresh(device))


def test_what_a_killed_device_left_half_written_is_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save_tidily(store, 0, 1, (0,), state_of(1))
    (tmp_path / "block-0000" / ".round-000002.safetensors.1a2b3c4d.tmp").touch()
    save_tidily(store, 0, 2, (0,), state_of(2))
    assert [path.name for path in (tmp_path / "block-0000").iterdir()] == ["round-000002.safetensors"]


def test_a_file_that_says_not_whose_it_is_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "block-0000" / "round-000001.safetensors", {"parameter/user": torch.zeros(3, 2)})
    with pytest.raises(DataError, match="does not say whose state it is"):
        Store(tmp_path).load(0, 2)


def test_only_its_owner_may_read_a_private_state(tmp_path: Path) -> None:
    state = PrivateState(("one",), {"user": torch.ones(1, 4)}, {})
    Store(tmp_path).save(0, 1, state)
    (file,) = tmp_path.glob("block-0000/*.safetensors")
    assert file.stat().st_mode & 0o077 == 0
