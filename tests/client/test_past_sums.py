"""No two sums that a device is in differ by a few people: their difference would be what these did."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.client.owner.owner import Owner
from tessera.client.owner.past_sums import Question, Whose, read_sums
from tessera.client.owner.policy import Policy, write_policy
from tessera.client.owner.rules import Sum
from tessera.client.people.events import People
from tessera.client.people.forget import forget
from tessera.client.recommendation import RecommendationClient
from tessera.common.errors import PolicyRefused, RunError
from tessera.common.privacy.between import people_between
from tessera.common.protocol.messages import COUNTS, Masking
from tessera.common.protocol.updates import Update, unpack_update
from tessera.deploy.provisioning.partition import partition
from tessera.server.federated_stats import HELD
from tests.client.test_owner import Server, orthonormal, says, some_views
from tests.deploy.test_secure_runs import SECURE, carry_out
from tests.support.catalogues import small_dataset, small_job
from tests.support.metrics import read_metrics

PEOPLE = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A device of 30 people, whose owner lets sums of five leave."""
    device = partition(small_dataset(tmp_path / "small", 30), tmp_path / "devices", 1)[0]
    write_policy(device, Policy(people=PEOPLE, people_per_column=1))
    return device


def comes(folder: Path, user: str, items: range = range(8)) -> None:
    People(folder).add_person(user)
    for item in items:
        People(folder).add_event(user, f"i{item:03d}")


def counted(server: Server, run: str) -> tuple[torch.Tensor | None, float]:
    """The item counts that a device tells outside secure sums, if it does, and how many people it says that it has."""
    update = unpack_update(server.ask("item_statistics", 0, run=run), [])
    return update.counts.get(COUNTS), update.sums["users"]


def test_counts_are_withheld_until_enough_people_came_or_went(folder: Path) -> None:
    """In whatever run they are asked again; one who came and one who went are two, not none."""
    server = Server(folder)
    before, _ = counted(server, "one")
    assert before is not None
    again, _ = counted(server, "two")
    assert again is not None
    assert torch.equal(before, again)
    comes(folder, "zoe")
    assert counted(server, "three") == (None, 31)
    forget(folder, People(folder).users()[0])
    assert counted(server, "three") == (None, 30)
    for user in ("yan", "xia"):
        comes(folder, user)
    assert counted(server, "four")[0] is None, (
        "three came and one went, but here no more than two are seen to have come"
    )
    for user in ("wim", "vic", "uli"):
        comes(folder, user)
    now, people = counted(server, "five")
    assert now is not None
    assert people == 35
    assert float((now - before).abs().sum()) > 0


@pytest.mark.parametrize("kind", ["power", "aspects", "baselines", "evaluate"])
def test_what_is_the_same_again_is_refused_once_one_person_has_come(folder: Path, kind: str) -> None:
    """An evaluation of other views is another question; of the same ones it is not, whatever round it is said to be of."""
    server = Server(folder)
    tables = {"power": "basis", "aspects": "aspects/spread"}
    inputs = {tables[kind]: orthonormal(4), "blocks": torch.arange(4.0)} if kind in tables else {}
    assert server.refused(kind, 2, inputs) == ""
    comes(folder, "zoe")
    if kind in tables:  # about nearly the same, too
        inputs[tables[kind]] = orthonormal(4, seed=1)
    assert server.refused(kind, 3, inputs) == says("held-back")
    if kind == "evaluate":
        assert server.refused(kind, 4, inputs, views=some_views(1)) == ""
    for user in "abcdef":
        comes(folder, user)
    assert server.refused(kind, 5, inputs) == ""


@given(
    st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 9), min_size=3), min_size=2, max_size=12),
    st.integers(1, 12),
)
def test_no_two_sums_that_are_read_differ_by_few(asked: list[dict[str, int]], people: int) -> None:
    """Not only from the last one: a server could ask about others in between."""
    question, read = Question(), list[dict[str, int]]()
    for devices in asked:
        whose = Whose.of(devices, 3, "the same")
        if not 0 < question.few(whose) < people:
            question = question.with_one(whose)
            read.append(devices)
    for one in read:
        for other in read:
            assert not 0 < people_between(one, other) < people


def test_a_sum_that_leaves_one_device_out_is_not_unmasked(folder: Path) -> None:
    """A server that says, the second time, that one of the group did not answer would read that one's counts."""
    server = Server(folder)
    client, owner, others = RecommendationClient(folder), Owner(folder, Policy(people=PEOPLE)), {"a": 3, "b": 3, "c": 4}
    for epoch, run in enumerate(("one", "two")):
        task = replace(server.task("item_statistics", 0, run=run), masking=Masking(epoch, (0,), ()))
        sum = Sum(40, 4, masked=True, others=others)
        owner.note(owner.check(client.own, task, {}, sum), Update(), 0)
    owner.sums("one").read(0, 0, frozenset("abc"), True)
    for left, own in (("ab", True), ("bc", True)):
        with pytest.raises(PolicyRefused, match="people came or went between this sum and an earlier one"):
            owner.sums("two").read(1, 0, frozenset(left), own)
    owner.sums("two").read(1, 0, frozenset("abc"), True)
    owner.sums("two").read(1, 0, frozenset("a"), True)
    owner.sums("two").read(1, 1, frozenset("ab"), True)


def secure_run(tmp_path: Path, name: str, devices: tuple[Path, ...], **more: object) -> tuple[dict, dict, bool]:
    """The first and the last line of a run under masks on 4 devices, and whether its server could read item counts."""
    job = replace(small_job(tmp_path, name, 4, rounds=2, privacy=SECURE, **more), devices=devices)
    carry_out(job, lambda answer: answer)
    lines = read_metrics(job.run_dir)
    return lines[0], lines[-1], lines[0]["withheld"] == 0


def test_under_masks_no_run_gets_counts_that_differ_by_one_person(tmp_path: Path) -> None:
    """All devices of the group see that somebody came, and none helps: the next run does without counts, and trains. Of people
    who are the same they are told again, and once enough have come."""
    devices = small_job(tmp_path, "made", 4).devices
    for device in devices:
        write_policy(device, Policy(people=PEOPLE, people_per_column=1))
    first, result, read = secure_run(tmp_path, "one", devices)
    assert read
    assert result.get("uncounted") is None
    assert secure_run(tmp_path, "same", devices)[2]
    comes(devices[1], "zoe")
    held, result, read = secure_run(tmp_path, "two", devices)
    assert not read
    assert (held["users"], held["withheld"]) == (first["users"] + 1, 4)
    assert result["uncounted"] == HELD
    assert result["rounds"] == 2
    assert set(result["scores"]) >= {"test/all/ndcg@50"}
    for user in "abcdef":
        comes(devices[2], user)
    assert secure_run(tmp_path, "three", devices)[2]
    assert len(read_sums(devices[0]).questions["item_statistics"].read) == 2


def test_a_run_that_may_not_divide_people_anew_goes_on_by_the_centres_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In mid-run nobody could do anything about it. A search for sides of items ends a run, which has not begun yet."""
    devices = small_job(tmp_path, "made", 4).devices
    for device in devices:
        write_policy(device, Policy(people=PEOPLE, people_per_column=1))
    local = {"backbone": "history", "loss": "softmax", "groups": {"count": 2, "by": "states", "after": 1}}
    secure_run(tmp_path, "one", devices, local=local)
    assert "people are divided by the centres so far" not in caplog.text
    comes(devices[1], "zoe")
    assert secure_run(tmp_path, "two", devices, local=local)[1]["rounds"] == 2
    assert "people are divided by the centres so far" in caplog.text
    views = {"facets": 2, "dim": 4, "item_ids": False, "operators": [], "modalities": ["text"]}
    with pytest.raises(RunError, match=r"devices hold aspects back.* views\.facets"):
        secure_run(tmp_path, "sides", devices, views=views)
