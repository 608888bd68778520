"""What a device's owner decides: each way in which a server could set one person apart is refused, and all is written down."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tessera.client.app import answer
from tessera.client.owner.ledger import LEDGER, Ledger
from tessera.client.owner.owner import Owner
from tessera.client.owner.policy import POLICY, Policy, parse_policy, read_policy, write_policy
from tessera.client.owner.rules import Sum
from tessera.client.recommendation import RecommendationClient
from tessera.common.config.device import DeviceSettings
from tessera.common.data.interactions import Interactions
from tessera.common.errors import ConfigError, PolicyRefused
from tessera.common.privacy.accounting import Release, epsilon, gaussian_epsilon
from tessera.common.protocol.messages import BASIS, COUNTS, Ask, Kind, Task, pack_task
from tessera.common.protocol.tensors import Tensors, content_hash
from tessera.common.protocol.updates import Update
from tessera.deploy.provisioning.partition import partition
from tests.support.catalogues import small_catalogue, small_dataset, small_settings

N_ITEMS = 40
FEW = Policy(people=10)
DISTRIBUTED = {"clip": 1, "noise": "distributed", "noise_multiplier": 2, "secure": True}


class Server:
    """Asks one device whatever it likes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder, self.settings = folder, settings
        self.catalogue = RecommendationClient(folder).catalogue().sha256

    def task(self, kind: Kind, round: int = 1, tensors: Tensors | None = None, run: str = "run", **more: Any) -> Task:
        settings = DeviceSettings.of(small_settings(**self.settings | more))
        views = ("one", "two")
        return Task(kind, run, round, (), views, self.catalogue, settings, content_hash(tensors) if tensors else "")

    def ask(
        self, kind: Kind, round: int = 1, inputs: Tensors | None = None, views: Tensors | None = None, **more: Any
    ) -> RecordDict:
        tensors = (views or some_views()) if kind in ("train", "evaluate") else None
        task = self.task(kind, round, tensors, **more)
        return answer(pack_task(task, tensors, inputs), lambda settings: RecommendationClient(self.folder))

    def refused(self, *arguments: Any, **more: Any) -> str:
        """Why the device refuses; "" where it answers."""
        reply = self.ask(*arguments, **more)
        return str(reply.config_records["refusal"]["reason"]) if "refusal" in reply else ""

    def counts(self) -> Tensor:
        return torch.from_numpy(RecommendationClient(self.folder).split(self.task("train").settings).counts()).float()


def some_views(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "views": torch.randn(2, N_ITEMS, 8, generator=generator),
        "history": torch.randn(N_ITEMS, 8, generator=generator),
    }


def orthonormal(width: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(torch.randn(N_ITEMS, width, generator=torch.Generator().manual_seed(seed))).Q


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A device of 30 people, whose owner lets sums of ten leave."""
    device = partition(small_dataset(tmp_path / "small", 30), tmp_path / "devices", 1)[0]
    write_policy(device, FEW)
    return device


@pytest.fixture
def server(folder: Path) -> Server:
    return Server(folder)


def says(kind: str) -> str:
    return f"refused by the device's policy: {kind}"


# --- what an honest server asks


def test_a_device_asks_for_64_people_unless_its_owner_says_otherwise(server: Server, folder: Path) -> None:
    """Alone and in a group; the owner is told the remedy, the server only what it was about."""
    (folder / POLICY).unlink()
    assert server.refused("item_statistics") == says("people")
    with pytest.raises(
        PolicyRefused, match=r"63 people on them, people is 64; .* device policy set people="
    ) as refused:
        Owner.of(RecommendationClient(folder)).sums("run").admit([b"key"] * 62, 63, b"")
    assert refused.value.kind == "people"
    assert [(line.kind, line.refused) for line in Ledger(folder).entries()[0]][-1] == ("group", "people")


def test_a_run_of_an_honest_server_is_answered_and_written_down(server: Server, folder: Path) -> None:
    counts, told = {COUNTS: server.counts()}, [("item_statistics", 0, {}), ("power", 0, {BASIS: orthonormal(5)})]
    told += [(kind, round, counts) for round in (1, 2, 3) for kind in ("train", "evaluate")]
    told += [("baselines", 1, counts), ("select", 3, {})]
    for kind, round, inputs in told:
        assert server.refused(kind, round, inputs) == ""
    lines, torn = Ledger(folder).entries()
    assert [(line.kind, line.round) for line in lines] == [(kind, round) for kind, round, _ in told]
    assert torn == []
    assert {line.people for line in lines} == {30}
    assert all(line.epsilon is None and line.noise is None and line.bytes > 0 for line in lines[1:3])
    for name in (POLICY, LEDGER):
        assert (folder / name).stat().st_mode & 0o777 == 0o600


def test_a_simulated_device_has_no_owner_unless_a_policy_lies_there(server: Server, folder: Path) -> None:
    (folder / POLICY).unlink()
    device = RecommendationClient(folder, simulated=True)
    assert Owner.of(device).policy is None
    assert not (folder / POLICY).exists()
    write_policy(folder, Policy(people=50))
    task = server.task("item_statistics")
    with pytest.raises(PolicyRefused):
        Owner.of(device).check(device.own, task, {})


# --- attacks of a server that isolates people


def test_the_server_leaves_nobody_out(server: Server) -> None:
    """Neither by cold users, nor by another seed, split or fraction for a later ask of the same run."""
    data = {"folder": "small", "cold_users": 0.9}
    assert server.refused("item_statistics", data=data) == says("cold-users")
    assert server.refused("item_statistics") == ""
    for other in ({"seed": 5}, {"fraction": 0.1}, {"data": {"folder": "small", "cold_items": 0.2}}):
        assert server.refused("item_statistics", 2, **other) == says("members")
        assert server.refused("train", 2, **other) == says("members")
    assert server.refused("train", 2, rounds=9) == ""  # a run may be made longer


def test_who_takes_part_is_drawn_from_the_devices_secret(tmp_path: Path) -> None:
    """The server's seed decides nothing, and where too few are drawn nothing leaves."""
    small_dataset(tmp_path / "small", 30)
    numbers = []
    for name in ("one", "other"):
        (device,) = partition(tmp_path / "small", tmp_path / name, 1)
        write_policy(device, FEW)
        server = Server(device, fraction=0.5)
        for round in range(1, 9):
            assert server.refused("train", round) in ("", says("people"))
        numbers.append([(line.people, line.refused) for line in Ledger(device).entries()[0]])
    assert numbers[0] != numbers[1]
    assert all((people < 10) == (refused == "people") for one in numbers for people, refused in one)
    lonely = Server(device, fraction=0.03)
    assert {lonely.refused("train", round, run="other") for round in range(1, 9)} <= {"", says("people")}
    assert all(line.people in (0, 30) or line.people >= 10 or line.refused for line in Ledger(device).entries()[0])


def test_a_device_of_one_person_answers_in_secure_sums_alone(tmp_path: Path) -> None:
    device = partition(small_dataset(tmp_path / "small", 30), tmp_path / "devices", 30)[0]
    server, client = Server(device), RecommendationClient(device)
    for kind in ("item_statistics", "power", "train", "evaluate", "baselines"):
        assert server.refused(kind, 1, {BASIS: orthonormal(5)}) == says("people")
    owner, task = Owner.of(client), server.task("train")
    assert owner.check(client.own, task, {}, Sum(people=64, devices=64, masked=True)).entry
    for few, kind in ((Sum(63, 63, masked=True), "people"), (Sum(64, 1, masked=True), "devices")):
        with pytest.raises(PolicyRefused) as refused:
            owner.check(client.own, task, {}, few)
        assert refused.value.kind == kind


@pytest.mark.parametrize(
    ("basis", "kind"),
    [
        (torch.ones(N_ITEMS, 1), "basis"),
        (torch.eye(N_ITEMS)[:, :5], "basis"),
        (30 * orthonormal(5), "basis"),
        (torch.full((N_ITEMS, 5), torch.nan), "basis"),
        (orthonormal(8), "people"),
    ],
    ids=["ones", "identity", "scaled", "nan", "wide"],
)
def test_products_are_of_orthonormal_columns_far_fewer_than_people(server: Server, basis: Tensor, kind: str) -> None:
    assert server.refused("power", 0, {BASIS: basis}) == says(kind)
    assert server.refused("power", 0, {BASIS: orthonormal(7)}) == ""
    assert server.refused("power", 0, {BASIS: orthonormal(7)}) == ""  # the same again tells nothing new
    assert server.refused("power", 0, {BASIS: orthonormal(1, seed=1)}) == says("people")  # 8 columns in this run


def test_an_item_that_few_people_have_is_in_no_product(tmp_path: Path) -> None:
    """However its row of the basis is hidden among others: nobody's history comes out of it."""
    dataset, own = tmp_path / "data", np.array([3, 17, 21, 39])
    small_catalogue(N_ITEMS, 0).save(dataset)
    rest = np.tile(np.arange(3, 12), 29)
    items = np.concatenate([own, rest])
    offsets = np.concatenate([[0, 4], 4 + 9 * np.arange(1, 30)])
    times = np.concatenate([np.arange(4), np.tile(np.arange(9), 29)])
    Interactions(tuple(f"p{n}" for n in range(30)), offsets, items, times, N_ITEMS).save(dataset)
    (device,) = partition(dataset, tmp_path / "devices", 1)
    write_policy(device, FEW)
    lone = torch.zeros(N_ITEMS, 2)
    lone[[17, 21, 3, 4], 0] = lone[[5, 6, 17, 8], 1] = 0.5
    reply = Server(device).ask("power", 0, {BASIS: torch.linalg.qr(lone).Q})
    (product,) = [record for name, record in reply.array_records.items() if BASIS in record]
    rows = np.flatnonzero(product[BASIS].numpy().any(1))
    assert 17 not in rows
    assert set(rows) <= {3, 4, 5, 6, 8}


def test_crafted_counts_tell_no_held_out_items_apart(server: Server) -> None:
    counts = server.counts()
    fewer = counts.clone()
    fewer[counts.argmax()] -= 1
    assert server.refused("evaluate", 1, {COUNTS: fewer}) == says("counts")
    assert server.refused("evaluate", 1, {COUNTS: counts}) == ""
    for bit in range(6):
        crafted = counts + (torch.arange(N_ITEMS) >> bit & 1)
        assert server.refused("evaluate", 2 + bit, {COUNTS: crafted}) == says("counts")
    assert server.refused("evaluate", 2, {COUNTS: counts}) == ""


def test_the_same_ask_is_answered_a_few_times_and_no_more(server: Server) -> None:
    replies = [server.refused("train", 1) for _ in range(50)]
    assert replies == [""] * 9 + [says("repeats")] * 41
    other = [server.refused("evaluate", 1, views=some_views(seed)) for seed in range(5)]
    assert other == [""] * 3 + [says("repeats")] * 2


def test_a_day_has_an_end(server: Server, folder: Path) -> None:
    write_policy(folder, Policy(people=10, max_asks_per_day=4))
    replies = [server.refused("train", round) for round in range(1, 20)]
    assert replies == [""] * 4 + [says("asks-per-day")] * 15
    assert len(Ledger(folder).entries()[0]) == 8  # nor do refusals fill the disk


@pytest.mark.parametrize(
    ("settings", "policy", "kind"),
    [
        ({"privacy": {"clip": 1e30, "noise_multiplier": 1e-30}}, {}, "clip"),
        ({"local": {"local_epochs": 51}}, {}, "local-epochs"),
        ({"local": {"loss": {"name": "next", "next_item_samples": 65}}}, {}, "next-item-samples"),
        ({"local": {"backbone": "fedavg", "loss": {"name": "bce", "negatives": 1001}}}, {}, "negatives"),
        ({}, {"min_noise_multiplier": 0.5}, "noise"),
        ({}, {"secure": "required"}, "secure"),
        ({}, {"answers": ["evaluate"]}, "kind"),
        ({}, {"max_epsilon": 8}, "epsilon"),
        ({"privacy": {"clip": 1, "noise_multiplier": 0.01}}, {"max_epsilon": 8}, "epsilon"),
        ({"privacy": DISTRIBUTED, "federation": {"nodes": 3}}, {}, "noise"),
    ],
)
def test_settings_of_training_have_floors_and_ceilings(
    server: Server, folder: Path, settings: dict[str, Any], policy: dict[str, Any], kind: str
) -> None:
    write_policy(folder, Policy(people=10, **policy))
    assert server.refused("train", **settings) == says(kind)


def test_views_that_are_all_zero_are_refused(server: Server) -> None:
    nothing = {name: torch.zeros_like(value) for name, value in some_views().items()}
    assert server.refused("train", views=nothing) == says("views")


def test_epsilon_is_that_of_the_sum_and_of_all_answers_so_far(server: Server, folder: Path) -> None:
    """30 people's noise together; 3 answers are one of noise divided by sqrt(3)."""
    privacy = {"clip": 1.0, "noise_multiplier": 2.0}
    for round in (1, 2, 3):
        assert server.refused("train", round, privacy=privacy) == ""
    lines = Ledger(folder).entries()[0]
    assert [line.epsilon for line in lines] == pytest.approx(
        [gaussian_epsilon((n / 30) ** 0.5 / 2, 1e-5) for n in (1, 2, 3)], rel=1e-6
    )
    assert server.refused("evaluate", 3, privacy=privacy) == ""
    assert Ledger(folder).entries()[0][-1].epsilon is None


def test_a_budget_ends_what_a_secure_sum_may_have(server: Server, folder: Path) -> None:
    """Distributed noise is that of the sum, sampling counts, and training that is exact is refused under masks too."""
    write_policy(folder, Policy(people=10, max_epsilon=6))
    settings, sum = {"privacy": DISTRIBUTED, "federation": {"nodes": 3}, "fraction": 0.5}, Sum(90, 3, masked=True)
    device, one = RecommendationClient(folder), Release(2.0, 0.5, discrete=True)
    owner, most = Owner.of(device), next(n for n in range(1, 50) if epsilon({one: n}, 1e-5) > 6) - 1
    assert most > 2
    for round in range(1, most + 2):
        granted = owner.check(device.own, server.task("train", round, **settings), {}, sum)
        if round <= most:
            owner.note(granted, Update(), 100)
            assert Ledger(folder).entries()[0][-1].epsilon == pytest.approx(epsilon({one: round}, 1e-5))
    with pytest.raises(PolicyRefused, match="epsilon would be"):
        owner.note(granted, Update(), 100)
    with pytest.raises(PolicyRefused, match="training without noise"):
        owner.check(device.own, server.task("train", 60, run="another"), {}, sum)


# --- what is told to whom


def test_a_refusal_tells_the_owner_all_and_the_server_its_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is refused: nothing of a person, and no number, is in what the server gets."""
    device = partition(small_dataset(tmp_path / "small", 30), tmp_path / "devices", 4)[1]
    server = Server(device)
    with caplog.at_level(logging.ERROR, "tessera"):
        reply = server.ask("train")
    assert list(reply) == ["refusal"]
    assert dict(reply.config_records["refusal"]) == {"reason": says("people"), "kind": "people"}
    (line,) = Ledger(device).entries()[0]
    assert (line.refused, line.bytes) == ("people", 0)
    assert "8 people here, in no secure sum, people is 64; the fewer" in line.reason
    assert line.reason in caplog.text


# --- the files


def test_a_line_cut_off_by_a_kill_is_passed_over_and_named(server: Server, folder: Path) -> None:
    for round in (1, 2):
        server.ask("train", round)
    path = folder / LEDGER
    path.write_bytes(path.read_bytes()[:-30])
    server.ask("train", 3)
    server.ask("train", 3)
    lines, torn = Ledger(folder).entries()
    assert ([line.round for line in lines], torn) == ([1, 3, 3], [2])
    assert Ledger(folder).memory().of("run").asks == {(1, "train"): 1, (3, "train"): 2}


def test_a_policy_with_mistakes_refuses_everything_and_names_the_key(server: Server, folder: Path) -> None:
    (folder / POLICY).write_text("peeple: 3\n")
    assert server.refused("item_statistics") == says("policy-file")
    with pytest.raises(ConfigError, match=r"policy\.yaml: unknown key 'peeple'; the nearest known one is 'people'"):
        read_policy(folder)
    (folder / POLICY).write_text("people: 30\n")  # what is not said is as by default
    assert server.refused("item_statistics") == ""


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=3))


@given(st.dictionaries(st.sampled_from(sorted(Policy.model_fields)) | st.text(max_size=8), VALUES, max_size=6))
def test_any_policy_is_read_as_it_is_written_or_refused_by_name(content: dict[str, Any]) -> None:
    try:
        policy = parse_policy(content, "policy.yaml")
    except ConfigError as error:
        told = str(error)
    else:
        again = parse_policy(yaml.safe_load(yaml.safe_dump(policy.model_dump(mode="json"))), "again")
        assert again == policy
        return
    assert told.startswith("policy.yaml: ")
    assert any(repr(key)[1:-1] in told for key in content)


def test_what_is_asked_along_is_held_against_the_policy_too(server: Server, folder: Path) -> None:
    write_policy(folder, Policy(people=10, answers=("train",)))
    views = some_views()
    task = replace(server.task("train", 2, views), also=(Ask("evaluate", 1),))
    reply = answer(pack_task(task, views, {}), lambda settings: RecommendationClient(folder))
    assert str(reply.config_records["evaluate/refusal"]["reason"]) == says("kind")
    assert "gradients" in reply


def test_a_clip_that_is_found_moves_with_each_round_and_no_further_than_the_policy_lets_it(server: Server) -> None:
    asked = [(1, 0.5, ""), (2, 0.6, ""), (3, 1000.0, says("clip"))]
    for round, clip, refused in asked:
        more = {"local": {"weighting": "users"}, "privacy": {"clip": clip, "clip_quantile": 0.5}}
        assert server.refused("train", round, **more) == refused
    fixed = {"local": {"weighting": "users"}, "privacy": {"clip": 0.7}}
    assert server.refused("train", 4, **fixed) == says("members")
