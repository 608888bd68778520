"""What a person asks of recommendations changes these, and nothing else: kept, moved along, and forgotten."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import tessera
from tessera.client.people.archive import export_person
from tessera.client.people.preferences import PREFERENCES, change_preferences
from tessera.common.errors import DamagedError, DataError
from tessera.deploy.cli.device import app
from tessera.deploy.executors import inline
from tests.deploy.test_executors import silent
from tests.support.catalogues import small_job


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The devices of a run on three."""
    job = small_job(tmp_path_factory.mktemp("run"), "run", 3, local={"backbone": "history", "batch_users": 2})
    inline.execute(job, silent)
    return job.devices


def test_leaning_shifts_the_weights_by_its_factor_and_taken_back_leaves_no_trace(folders: tuple[Path, ...]) -> None:
    device = tessera.Device.open(folders[0])
    user, other = (person.user for person in device.people()[:2])
    views = device.recommend(user).reliance
    before, others = device.recommend(user, 100), device.recommend(other, 100)
    weights = device._by(
        lambda personal: personal.weights_of(user)
    )  # as learnt: what is asked for is not mixed into it
    for view in views:
        assert device.lean(user, view, 2.0).leaning == {view: 2.0}
        leant = device.recommend(user, 100)
        assert leant.reliance[view] > before.reliance[view]
        assert {one.item for one in leant} == {one.item for one in before}  # another order of the same items
        assert device._by(lambda personal: personal.weights_of(user)) == weights
        assert device.recommend(other, 100) == others
        device.lean(user, view, 0)
    assert device.recommend(user, 100) == before
    assert not (folders[0] / PREFERENCES).exists()


def test_an_offset_is_a_factor_of_the_view_s_part_in_the_score(folders: tuple[Path, ...]) -> None:
    """With every view's weight as before but one, score(x) = sum_j w_j e^{x_j} part_j / sum_j w_j e^{x_j} for History."""
    device = tessera.Device.open(folders[0])
    user = device.people()[0].user
    item = device.recommend(user, 1)[0].item
    plain, weights = device.explain(user, item), device._by(lambda personal: personal.weights_of(user))
    device.lean(user, "text", 1.0)
    leant = device.explain(user, item)
    device.lean(user, "text", 0.0)
    factor = {view: torch.e if view == "text" else 1.0 for view in weights}
    total = sum(weight * factor[view] for view, weight in weights.items())
    for view, part in plain.parts.items():
        assert leant.parts[view] == pytest.approx(part * factor[view] / total, rel=1e-3, abs=1e-5)


def test_hidden_items_never_come_back_but_where_they_are_shown_again(folders: tuple[Path, ...]) -> None:
    device = tessera.Device.open(folders[0])
    user = device.people()[0].user
    before = device.recommend(user, 100)
    device.hide(user, before[0].item)
    assert [one.item for one in device.recommend(user, 100)] == [one.item for one in before[1:]]
    assert device.explain(user, before[0].item).place is None
    device.hide(user, before[0].item, hidden=False)
    assert device.recommend(user, 100) == before


def test_preferences_move_along_and_are_forgotten(folders: tuple[Path, ...], tmp_path: Path) -> None:
    device, other = (tessera.Device.open(folder) for folder in folders[1:])
    first, second = (person.user for person in device.people()[:2])
    wanted = device.hide(first, device.recommend(first, 1)[0].item)
    wanted = device.lean(first, "image", -1.5)
    device.lean(second, "text", 1.0)
    export_person(device.folder, first, tmp_path / "first.zip")
    other.import_(tmp_path / "first.zip")
    assert other.preferences(first) == wanted
    device.forget(first)
    assert first not in (device.folder / PREFERENCES).read_text()
    assert device.preferences(second).leaning == {"text": 1.0}
    device.forget(second)
    assert not (device.folder / PREFERENCES).exists()
    other.forget(first)


def test_what_cannot_be_is_refused_and_changes_nothing(folders: tuple[Path, ...]) -> None:
    device = tessera.Device.open(folders[0])
    user = device.people()[0].user
    for refused, message in (
        (lambda: device.lean(user, "smell", 1.0), "there is no view 'smell'; there are "),
        (lambda: device.lean(user, "text", 3.5), "an offset of 3.5 for 'text' is too large: from -3 to 3"),
        (lambda: device.lean(user, "text", float("nan")), "an offset of nan"),
        (lambda: device.lean("stranger", "text", 1.0), "'stranger' is not on this device"),
        (lambda: device.hide(user, "no such item"), "no such item"),
    ):
        with pytest.raises(DataError, match=message):
            refused()
    assert not (folders[0] / PREFERENCES).exists()
    (folders[0] / PREFERENCES).write_text('{"somebody": {"leaning": {"text": 40}}}')
    with pytest.raises(DamagedError, match=r"preferences.json: somebody.leaning.text: "):
        device.recommend(user)
    with pytest.raises(DamagedError):
        change_preferences(folders[0], user, lambda one: one)
    (folders[0] / PREFERENCES).unlink()


def test_the_command_changes_and_shows_them(folders: tuple[Path, ...]) -> None:
    device = tessera.Device.open(folders[0])
    user = device.people()[0].user
    item = device.recommend(user, 1)[0].item

    def prefer(*asked: str) -> Result:
        return CliRunner().invoke(app, ["prefer", user, "--data-dir", str(folders[0]), *asked])

    assert prefer("--lean", "text=-1", "--hide", item).output == f"views count text -1; not to be shown: {item}\n"
    assert json.loads(prefer("--lean", "text=0", "--unhide", item, "--json").output) == {"leaning": {}, "hidden": []}
    assert "--lean text: write VIEW=X with a number" in str(prefer("--lean", "text").exception)
