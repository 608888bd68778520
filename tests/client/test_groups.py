"""Groups of people with maps of their own: laws of the sums, of how people are divided, and runs with them."""

import copy
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tessera.client import cohort
from tessera.client.aspects.groups import GIVEN, GROUP, assigned, lloyd_sum, people_of_groups
from tessera.client.histories import histories
from tessera.client.people.archive import export_person
from tessera.client.people.events import People
from tessera.client.people.forget import forget
from tessera.client.per_person.training import CohortTraining
from tessera.client.private_state import PrivateState, Store, unpack_state
from tessera.client.recommendation import _without_one
from tessera.client.transforms import Clip, Origin, Transforms
from tessera.common.config.federation import GroupSettings
from tessera.common.config.settings import LocalSettings, Settings
from tessera.common.data.interactions import Split
from tessera.common.errors import ConfigError, DataError
from tessera.common.protocol.messages import GROUP_CENTRES, GROUP_MAPS, GROUP_PEOPLE, GROUP_STATES, HISTORY, VIEWS
from tessera.common.protocol.updates import Update
from tessera.deploy.executors import inline
from tessera.server.live.grouping import concentration, lloyd
from tessera.server.strategies.fedvlr import FedVLR
from tests.deploy.test_executors import SGD, assert_bitwise, assert_same_run, last_checkpoint, silent
from tests.support.catalogues import small_catalogue, small_job, small_settings, small_split
from tests.support.splits import ragged, shuffled, split_of

N_ITEMS, DIM, GROUPS = 30, 8, 3
DIVIDED: dict[str, Any] = {"count": GROUPS, "by": "random", "smallest": 1}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def local(**changes: Any) -> LocalSettings:
    return LocalSettings.model_validate({"loss": "next", "groups": DIVIDED, "learning_rate": 0.05} | changes)


def sent(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    return {VIEWS: drawn(2, N_ITEMS, DIM), HISTORY: drawn(N_ITEMS, DIM, seed=1), GROUP_MAPS: maps}


def state_in(groups: list[int], split: Split, settings: LocalSettings) -> PrivateState:
    start = cohort.start_state(split.users, settings, drawn(2, N_ITEMS, DIM), seed=7)
    return replace(start, parameters={**start.parameters, GROUP: torch.tensor(groups).double()[:, None]})


def people(split: Split) -> Any:
    return histories(split).to(torch.device("cpu"), torch.float64)


@pytest.mark.parametrize(("encoder", "rank"), [("frozen", 0), ("bottleneck", 3)])
def test_the_groups_sum_goes_through_the_encoder_as_if_each_device_had_it(encoder: str, rank: int) -> None:
    content = {
        "name": "vjp",
        "data": {"folder": "none"},
        "views": {"dim": DIM, "id_dim": 6, "encoder": encoder},
        "local": {"loss": "next", "groups": DIVIDED | {"rank": rank}},
        "server": {"optimizer": "sgd", "learning_rate": 1.0},
    }
    settings, split = Settings.model_validate(content), small_split(n_users=9, n_items=N_ITEMS)
    strategy = FedVLR(settings, small_catalogue(n_items=N_ITEMS))
    strategy.generator.double()
    for parameter in strategy.generator.parameters():  # away from a start at which much is zero
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double()
    groups, before = [n % GROUPS for n in range(9)], copy.deepcopy(strategy.generator)
    tensors = strategy.build_views()
    start = cohort.start_state(split.users, settings.local, tensors[VIEWS], seed=7)
    start = replace(start, parameters={**start.parameters, GROUP: torch.tensor(groups).double()[:, None]})
    parts = [np.array(part) for part in ([0, 1, 2], [3, 4, 5, 6, 7, 8])]
    updates = [
        cohort.train(
            start.take(torch.from_numpy(part)), tensors, people(split.take(part)), settings.local, seed=7, round=3
        )[1]
        for part in parts
    ]
    counts = Update(counts={GROUP_PEOPLE: people_of_groups(start, settings.local.groups)})
    strategy.aggregate(sum(updates, counts))

    whole, step = before(), cohort.Step(tensors, people(split), settings.local, 3)
    salt = cohort.counter_rng.key("epoch", 7, 3, 0)
    losses = step._losses(dict(start.parameters), whole, salt)
    names = dict(before.named_parameters())
    found = torch.autograd.grad(losses.mean(), list(names.values()), allow_unused=True)
    after = dict(strategy.generator.named_parameters())
    for (name, value), gradient in zip(names.items(), found, strict=True):
        moved = torch.zeros_like(value) if gradient is None else gradient
        torch.testing.assert_close(after[name], value - moved, rtol=1e-6, atol=1e-9)
    assert all(bool(part.any()) for part in (after[f"head.{GROUP_MAPS}"] - names[f"head.{GROUP_MAPS}"]).chunk(GROUPS))


@pytest.mark.parametrize("rank", [DIM, 3])
def test_fresh_groups_score_as_none_equal_ones_as_one_and_names_change_nothing(rank: int) -> None:
    split, known = small_split(9, N_ITEMS), people(small_split(9, N_ITEMS))
    groups = [n % GROUPS for n in range(9)]

    def scored(maps: torch.Tensor, groups: list[int], settings: LocalSettings) -> torch.Tensor:
        return cohort.scores(state_in(groups, split, settings).parameters, sent(maps), known, settings)[0]

    plain = cohort.start_state(split.users, local(groups={}), drawn(2, N_ITEMS, DIM), seed=7)
    tensors = {name: value for name, value in sent(torch.zeros(0)).items() if name != GROUP_MAPS}
    ungrouped = cohort.scores(plain.parameters, tensors, known, local(groups={}))[0]
    assert torch.equal(scored(torch.zeros(GROUPS * rank, DIM).double(), groups, local()), ungrouped)
    assert torch.equal(scored(drawn(GROUPS * rank, DIM), [-1] * 9, local()), ungrouped), "who is in no group has no map"
    one = drawn(rank, DIM, seed=5)
    single = scored(one, [0] * 9, local(groups={"count": 1, "by": "random"}))
    torch.testing.assert_close(scored(one.repeat(GROUPS, 1), groups, local()), single)

    maps, order = drawn(GROUPS * rank, DIM), torch.tensor([2, 0, 1])
    renamed = maps.view(GROUPS, rank, DIM)[order].reshape(-1, DIM)
    others = [int((order == group).nonzero()) for group in groups]
    torch.testing.assert_close(scored(renamed, others, local()), scored(maps, groups, local()))
    mine, theirs = (
        cohort.train(state_in(own, split, local()), sent(table), known, local(), seed=1, round=2)[1].gradients
        for own, table in ((groups, maps), (others, renamed))
    )
    torch.testing.assert_close(theirs[VIEWS], mine[VIEWS])
    slices = mine[GROUP_MAPS].view(GROUPS, rank, DIM)
    torch.testing.assert_close(theirs[GROUP_MAPS].view(GROUPS, rank, DIM), slices[order])


def test_eight_groups_of_half_rank_cost_at_most_a_twentieth_without_ids_on_as_many_items_as_movielens_has() -> None:
    def numbers(groups: dict[str, Any]) -> tuple[int, int]:
        settings = small_settings(
            views={"dim": 64, "operators": [], "item_ids": False},
            local={"backbone": "cosine", "loss": "next", "history_mask": 0.0, "groups": groups},
        )
        strategy = FedVLR(settings, small_catalogue(n_items=3650))
        strategy.divide(torch.zeros(8, 64))
        sent = strategy.broadcast(None)
        return sum(one.nbytes for one in sent.content.values()), sum(one.numel() for one in sent.tensors.values())

    (down, up), (less_down, less_up) = numbers({"count": 8, "rank": 32}), numbers({})
    assert down <= 1.05 * less_down
    assert up <= 1.05 * less_up


def test_a_persons_gradient_is_in_their_own_slice_alone_and_can_be_told_apart() -> None:
    split, settings = split_of(ragged(0, [9, 5, 7, 6, 8, 5], N_ITEMS), N_ITEMS), local()
    start, tensors = state_in([0, 1, 1, 0, 2, 1], split, settings), sent(drawn(GROUPS * DIM, DIM))
    method = CohortTraining(tensors, settings, seed=1, round=3)
    _, whole = method.together(start, split)
    alone = [method.together(start.take(torch.tensor([u])), split.take(np.array([u])))[1] for u in range(6)]
    for group, update in zip([0, 1, 1, 0, 2, 1], alone, strict=True):
        there = update.gradients[GROUP_MAPS].view(GROUPS, -1).any(1)
        assert there.tolist() == [one == group for one in range(GROUPS)]
    _, clipped = Transforms([Clip(1e6)]).train(method, start, split, Origin(1, 3))
    for name, value in whole.gradients.items():
        torch.testing.assert_close(sum(alone, Update()).gradients[name], value)
        torch.testing.assert_close(clipped.gradients[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shares", [False, True])
def test_lloyd_depends_on_people_and_not_on_how_they_are_dealt_to_devices(shares: bool) -> None:
    split, table = split_of(ragged(0, [9] * 40 + [0], 60), 60), drawn(60, DIM).float()

    def centres(parts: list[Split]) -> torch.Tensor:
        def ask(now: torch.Tensor) -> torch.Tensor:
            inputs = {GROUP_STATES: table, GROUP_CENTRES: now}
            return torch.stack([lloyd_sum(part, inputs, shares).counts[GROUP_STATES] for part in parts]).sum(0)

        return lloyd(ask, table, GROUPS, 100, seed=1, shares=shares)

    dealt = [split.take(np.array(part)) for part in (range(30, 41), range(7), range(7, 30))]
    whole = centres([split])
    torch.testing.assert_close(centres(dealt), whole)
    found = lloyd_sum(split, {GROUP_STATES: table, GROUP_CENTRES: whole}, shares).counts[GROUP_STATES]
    assert float(found[:, -1].sum()) == pytest.approx(40), "who has no event is in no group"
    directions = [torch.nn.functional.normalize(one, dim=1) for one in (found[:, :-1], whole)]
    torch.testing.assert_close(*directions, rtol=1e-3, atol=1e-3)


def test_a_mixture_finds_how_sharply_states_lie_around_their_centres() -> None:
    dim, kappa, count = 16, 20.0, 4000
    gaussian = torch.randn(count, dim, generator=torch.Generator().manual_seed(1)).double()
    towards = torch.zeros(dim).double()
    towards[0] = kappa  # exp(kappa x . m) on the sphere, by weights of uniform directions
    units = torch.nn.functional.normalize(gaussian, dim=1)
    weights = (units @ towards).softmax(0) * count
    found = concentration((weights @ units)[None], torch.tensor([float(count)]))
    assert found == pytest.approx(kappa, rel=0.1)


def test_what_is_held_out_decides_no_group_and_a_group_once_given_stays(tmp_path: Path) -> None:
    split = small_split(9, N_ITEMS)
    other = replace(split, validation=shuffled(split.validation), test=shuffled(split.test))
    tensors = sent(torch.zeros(GROUPS * DIM, DIM)) | {GROUP_CENTRES: drawn(GROUPS, DIM, seed=4)}
    for by in ("states", "mixture", "random"):
        settings = local(groups={"count": GROUPS, "by": by})
        fresh = state_in([-1] * 9, split, settings)
        mine, theirs = (assigned(fresh, one, tensors, settings.groups, tmp_path) for one in (split, other))
        assert torch.equal(mine.parameters[GROUP], theirs.parameters[GROUP])
        assert len(mine.parameters[GROUP].unique()) > 1
        later = tensors | {GROUP_CENTRES: drawn(GROUPS, DIM, seed=5)}
        assert torch.equal(
            assigned(mine, split, later, settings.groups, tmp_path).parameters[GROUP], mine.parameters[GROUP]
        )
        before = {name: value for name, value in tensors.items() if name != GROUP_CENTRES}
        assert assigned(fresh, split, before, settings.groups, tmp_path) is fresh, "until people are divided"


def test_groups_that_are_given_are_read_from_the_devices_own_file(tmp_path: Path) -> None:
    split, groups = small_split(3, N_ITEMS), GroupSettings(count=2, by="given")
    tensors, fresh = sent(torch.zeros(2 * DIM, DIM)) | {GROUP_CENTRES: torch.zeros(2, 1)}, local(groups={"count": 2})
    start = state_in([-1] * 3, split, fresh)
    with pytest.raises(DataError, match=GIVEN):
        assigned(start, split, tensors, groups, tmp_path)
    rows = [f"{user},{n % 2}" for n, user in enumerate(split.users)]
    (tmp_path / GIVEN).write_text("\n".join(["user,group", *rows[:2]]))
    with pytest.raises(DataError, match=f"{split.users[2]!r} no group from 0 to 1"):
        assigned(start, split, tensors, groups, tmp_path)
    (tmp_path / GIVEN).write_text("\n".join(["user,group", *rows]))
    assert assigned(start, split, tensors, groups, tmp_path).parameters[GROUP][:, 0].tolist() == [0, 1, 0]


def test_a_slice_of_fewer_people_is_never_stepped_and_nobody_is_said_to_be_alone_in_a_group() -> None:
    settings = small_settings(local={"groups": {"count": GROUPS, "by": "random", "smallest": 5}})
    strategy = FedVLR(settings, small_catalogue(n_items=N_ITEMS))
    for people, stepped in (([9.0, 4.0, 5.0], [True, False, True]), ([0.0, 9.0, 0.0], [False, True, False])):
        before = {name: value.clone() for name, value in strategy.build_views().items()}
        gradients = {name: torch.ones_like(value) for name, value in before.items()}
        strategy.aggregate(Update(gradients, 9.0, counts={GROUP_PEOPLE: torch.tensor(people)}))
        moved = strategy.build_views()[GROUP_MAPS] - before[GROUP_MAPS]
        assert moved.view(GROUPS, -1).any(1).tolist() == stepped
    before = {name: value.clone() for name, value in strategy.build_views().items()}
    strategy.aggregate(Update({name: torch.ones_like(value) for name, value in before.items()}, 9.0))
    assert torch.equal(strategy.build_views()[GROUP_MAPS], before[GROUP_MAPS]), "where nobody says how many"
    said = _without_one(Update(counts={GROUP_PEOPLE: torch.tensor([1.0, 3.0, 0.0])}))
    assert said.counts[GROUP_PEOPLE].tolist() == [0, 3, 0]


@pytest.mark.parametrize("by", ["states", "mixture", "random"])
def test_a_run_with_groups_is_the_same_on_any_nodes_under_masks_and_resumed(tmp_path: Path, by: str) -> None:
    groups = {"count": 2, "by": by, "after": 1, "smallest": 2}
    changes = {"server": SGD, "local": {"groups": groups}, "planted": True}
    for nodes in (1, 3):
        inline.execute(small_job(tmp_path, f"nodes-{nodes}", nodes, **changes), silent)
    inline.execute(small_job(tmp_path, "masked", 4, **changes, privacy={"secure": True}), silent)
    for resume, rounds in ((False, 2), (True, 4)):
        inline.execute(small_job(tmp_path, "parts", 3, rounds=rounds, resume=resume, **changes), silent)
    assert_same_run(tmp_path / "nodes-1", tmp_path / "nodes-3", 2e-5)
    assert_same_run(tmp_path / "nodes-1", tmp_path / "masked", 3e-4)
    assert_bitwise(tmp_path / "nodes-3", tmp_path / "parts")
    assert last_checkpoint(tmp_path / "masked")[f"model/head.{GROUP_MAPS}"].view(2, -1).any(1).all()


def test_a_run_that_ends_before_people_are_divided_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, after in (("never", 2), ("divided", 1)):
        groups = {"count": 2, "by": "random", "after": after}
        inline.execute(small_job(tmp_path, name, 1, rounds=2, local={"groups": groups}), silent)
        assert ("local.groups.after is 2, and there are 2 rounds" in caplog.text) == (name == "never")
        caplog.clear()


def test_a_group_is_exported_and_forgotten_with_the_person(tmp_path: Path) -> None:
    job = small_job(tmp_path, nodes=1, local={"groups": {**DIVIDED, "count": 2}})
    inline.execute(job, silent)
    (folder,) = job.devices
    (store,) = (Store(path.parent) for path in folder.glob("private/*/run.json"))
    user = People(folder).users()[3]
    state = store.find((user,), 99, 0)
    assert state is not None
    group = float(state.parameters[GROUP])
    assert group in (0, 1)
    export_person(folder, user, tmp_path / "person.zip")
    with zipfile.ZipFile(tmp_path / "person.zip") as archive:
        (name, *_) = sorted(one for one in archive.namelist() if one.startswith("states/"))
        assert float(unpack_state(archive.read(name), name).parameters[GROUP]) == group
    forget(folder, user)
    assert store.find((user,), 99, 0) is None


def test_groups_by_cohesion_are_as_many_as_facets_and_noise_is_on_no_division() -> None:
    with pytest.raises(ConfigError, match=r"set local\.groups\.count to 0"):
        small_settings(local={"groups": {"count": 3, "by": "cohesion"}})
    with pytest.raises(ConfigError, match="does not noise what divides people"):
        small_settings(local={"groups": {"count": 3}}, privacy={"clip": 1.0, "noise_multiplier": 1.0})
    with pytest.raises(ConfigError, match=r"local\.groups\.after has no effect"):
        small_settings(local={"groups": {"after": 3}})
