"""The operator's page and `tessera runs`: what runs have written, live, and nothing of a person."""

import json
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tessera.client.people.device import Device
from tessera.common.errors import DataError
from tessera.common.metrics.records import RoundRecord, read_records, write_line
from tessera.deploy.api.result import Result
from tessera.deploy.cli.runs.commands import app
from tessera.deploy.executors import inline
from tessera.deploy.executors import ray as simulate
from tessera.deploy.pages.operator.charts import HEIGHT, WIDTH, chart
from tessera.deploy.provisioning.partition import partition
from tessera.server.live.run_info import RunInfo
from tests.deploy.test_executors import silent
from tests.deploy.test_forever import SETTINGS
from tests.support.catalogues import small_job
from tests.support.commands import Start, commands, wait
from tests.support.lasting import Lasting
from tests.support.pages import Page, browser, page_of, violations

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and one of a grid that has the same name."""
    folder = tmp_path_factory.mktemp("runs")
    for name, rate in (("runs/seed0", 0.01), ("runs/grid/fcf/seed0", 0.1)):
        inline.execute(small_job(folder, name, server={"learning_rate": rate}), silent)
    return folder / "runs"


@pytest.fixture(scope="module")
def page(runs: Path) -> Iterator[Page]:
    with page_of("runs", "page", "--runs", runs) as page:
        page.web.get(page.address)
        yield page


def test_runs_are_shown_with_their_own_figures_side_by_side(runs: Path, page: Page) -> None:
    text = page.web.get("/", params={"run": ["seed0", "grid/fcf/seed0"]}).text
    for name in ("seed0", "grid/fcf/seed0"):
        result = Result.load(runs / name)
        assert f"Round {result.selected_round} was selected." in text
        losses = [line.loss for line in read_records(runs / name) if isinstance(line, RoundRecord)]
        assert f"{losses[-1]:.4g}" in text
    assert text.count("<polyline") == 2 * text.count("<svg")
    assert "test NDCG@50, warm targets" in text


def test_nothing_of_a_person_is_on_it(runs: Path, page: Page) -> None:
    text = page.web.get("/", params={"run": ["seed0", "grid/fcf/seed0"]}).text
    for folder in (runs / "seed0" / "devices").iterdir():
        for person in Device.open(folder).people():
            assert person.user not in text


def test_what_there_is_not_is_said_in_a_sentence(page: Page, tmp_path: Path) -> None:
    answer = page.web.get("/", params={"run": "../seed0"})
    assert answer.status_code == 400
    assert "there is no run" in answer.text
    assert page.web.post("/stop", data={"run": "seed0"}).status_code == 404
    with page_of("runs", "page", "--runs", tmp_path) as empty:
        assert "No run has begun yet." in empty.web.get(empty.address, follow_redirects=True).text


def test_a_page_that_is_being_followed_ends_at_once_and_says_nothing(runs: Path) -> None:
    with page_of("runs", "page", "--runs", runs) as page:
        page.web.get(page.address)
        with page.web.stream("GET", "/live") as live:
            assert next(live.iter_lines()) == "retry: 2000"
            page.process.send_signal(signal.SIGINT)
            page.process.wait(60)
        assert page.process.stdout is not None
        assert page.process.stdout.read() == ""


def test_a_curve_fills_its_frame_from_its_lowest_to_its_highest() -> None:
    found = chart("loss", {"a": [(1, 4.0), (2, 2.0), (3, 3.0)], "b": [], "c": [(5, 2.0)]})
    assert found is not None
    assert [line.points for line in found.lines] == [
        f"0.0,0.0 {WIDTH / 4},{HEIGHT}.0 {WIDTH / 2},{HEIGHT / 2}",
        f"{WIDTH}.0,{HEIGHT}.0",
    ]
    assert chart("nothing", {"a": []}) is None
    assert chart("one", {"a": [(1, 1.0)]}) is not None
    amounts = chart("bytes", {"a": [(1, 3_262_417.0)]}, floor=0.0)
    assert amounts is not None
    assert amounts.words == "bytes, 0 to 3,262,000, rounds 1 to 1; last: a 3,262,000"


def test_the_commands_say_the_same(runs: Path) -> None:
    def told(*words: object) -> Any:
        return json.loads(CliRunner().invoke(app, [*map(str, words), "--json"]).output)

    listed = {run["name"]: run for run in told("list", "--runs", runs)}
    assert listed.keys() == {"seed0", "grid/fcf/seed0"}
    result = Result.load(runs / "seed0")
    assert told("show", runs / "seed0")["selected_round"] == listed["seed0"]["best_round"] == result.selected_round
    assert told("show", runs / "seed0") == listed["seed0"] == RunInfo.read(runs / "seed0").facts()
    compared = told("compare", runs / "seed0", runs / "grid/fcf/seed0")
    assert compared["settings"]["server.learning_rate"] == ["0.01", "0.1"]
    lines = CliRunner().invoke(app, ["tail", str(runs / "seed0")]).output.splitlines()
    assert lines == [*(line.sentence() for line in read_records(runs / "seed0")), "seed0: completed"]
    assert isinstance(CliRunner().invoke(app, ["list", "--runs", "nowhere"]).exception, DataError)


def test_a_run_that_was_killed_has_the_best_round_that_it_knew_of_itself(runs: Path, tmp_path: Path) -> None:
    """Evaluations of some of the people may look better: only the run knows whether it took them for its best."""
    run = Path(shutil.copytree(runs / "seed0", tmp_path / "killed"))
    ended = RunInfo.read(run)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    last = ended.evaluations[-1].model_copy(update={"scores": dict.fromkeys(ended.evaluations[-1].scores, 99.0)})
    (run / "metrics.jsonl").write_text("".join([*lines[:-1], write_line(last)]))
    (run / "status.json").write_text(json.dumps({"run": ended.run, "state": "running", "reason": ""}))
    killed = RunInfo.read(run)
    assert (killed.best, killed.ended) == (ended.best, None)
    assert "99.00" not in CliRunner().invoke(app, ["show", str(run)]).output


@pytest.mark.parametrize("executor", [inline, pytest.param(simulate, marks=pytest.mark.slow)])
def test_a_run_in_secure_sums_says_of_how_many_devices_they_are(tmp_path: Path, executor: Any) -> None:
    executor.execute(small_job(tmp_path, "runs/masked", 5, privacy={"secure": True}), silent)
    with page_of("runs", "page", "--runs", tmp_path / "runs") as page:
        text = page.web.get(page.address, follow_redirects=True).text
    told = "secure sums: the server reads what 1 group of 5 devices adds up to, and no device&#39;s own answer"
    assert f"<p>{told[:1].upper()}{told[1:]}.</p>" in text
    assert "masked: completed" in text
    assert text.count("<svg") >= 5
    assert told.replace("&#39;", "'") in CliRunner().invoke(app, ["show", str(tmp_path / "runs/masked")]).output


@pytest.fixture
def start() -> Iterator[Start]:
    with commands() as starter:
        yield starter


@browser
def test_a_run_is_watched_to_its_end_with_a_device_killed_on_the_way(
    chromium: Any,
    start: Start,
    shop: Path,
    tmp_path: Path,
) -> None:
    lasting = Lasting(start, shop, tmp_path, partition(shop, tmp_path / "devices", 3), SETTINGS)
    joined = [lasting.join(device) for device in lasting.devices]
    with page_of("federate", "page", "--dir", lasting.server) as page:
        tab = chromium.new_page()
        tab.goto(page.address)
        tab.get_by_text("No run has begun yet.").wait_for()
        submit = lasting.submit()
        assert wait(lambda: bool(lasting.rounds())), submit.told()
        tab.goto(page.address)
        tab.get_by_text("3 of 3 are online.").wait_for(timeout=60_000)

        row = tab.locator("tr", has=tab.get_by_role("link", name="lasting"))
        before = int(row.locator("td").nth(2).inner_text())
        round, nodes = (
            f"[...document.querySelectorAll('tr')].find(r => r.querySelector('a')).children[{n}].innerText"
            for n in (3, 5)
        )
        tab.wait_for_function(
            f"before => Number({round}) > before", arg=before, timeout=60_000
        )  # nobody loads it again
        joined[2].kill()
        tab.wait_for_function(f"() => {nodes} == '2'", timeout=90_000)
        tab.get_by_role("button", name="Stop lasting").click()
        tab.get_by_text("lasting is stopped").wait_for(timeout=60_000)
        assert submit.ends() == 0, submit.told()
        text = tab.content()
        for device in lasting.devices:
            for person in Device.open(device).people():
                assert not re.search(rf"\b{re.escape(person.user)}\b", text)
        tab.close()


@browser
def test_a_page_outlives_the_server_that_it_is_about(chromium: Any, start: Start, shop: Path, tmp_path: Path) -> None:
    lasting = Lasting(start, shop, tmp_path, partition(shop, tmp_path / "devices", 1), SETTINGS)
    silent = "The server does not answer."
    with page_of("federate", "page", "--dir", lasting.server) as page:
        tab = chromium.new_page()
        tab.goto(page.address)
        for sentence in ("0 of 0 are online.", "No model is published.", "No run has begun yet."):
            tab.get_by_text(sentence).wait_for()
        assert tab.get_by_text(silent).count() == 0
        lasting.served.kill()
        tab.get_by_text(silent).wait_for(timeout=60_000)  # nobody loads it again
        lasting.serve()
        tab.get_by_text(silent).wait_for(state="detached", timeout=60_000)
        tab.close()


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(chromium: Any, page: Page, scheme: str) -> None:
    tab = chromium.new_page(color_scheme=scheme, bypass_csp=True, viewport={"width": 390, "height": 844})
    tab.goto(page.address)
    tab.goto(f"http://{page.host}/?run=seed0&run=grid%2Ffcf%2Fseed0")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than a phone"
    assert not violations(tab)
    tab.close()
