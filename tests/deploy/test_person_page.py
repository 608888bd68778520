"""The person's page as a browser and as an attacker see it: a real server, a real browser, the device's own files."""

import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

import tessera
from tessera.client.people.archive import import_person
from tessera.client.people.device import Device
from tessera.common.config.loading import load_settings
from tessera.common.datasets import convert_shop
from tessera.deploy.executors.run import make_job, run_job
from tests.deploy.test_executors import silent
from tests.support.commands import wait
from tests.support.pages import Page, browser, page_of, violations

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo.yaml"
SMALL = [
    "rounds=2",
    "views.dim=8",
    "views.id_dim=8",
    "evaluation.baselines=false",
    "evaluation.every=2",
    "federation.nodes=10",
]
MARKUP = "<script>alert(1)</script><b>\"bold\"</b> & 'co'"
pytestmark = pytest.mark.integration


def of(data: Path) -> tuple[object, ...]:
    """The command for a device's page."""
    return ("device", "page", "--data-dir", data)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop with pictures, one of whose titles is markup, and a run on ten devices of two people."""
    folder = tmp_path_factory.mktemp("page")
    convert_shop(folder / "shop", n_items=80, n_users=20, seed=0)
    items = pl.read_parquet(folder / "shop" / "items.parquet")
    titles = [MARKUP if row == 0 else title for row, title in enumerate(items["title"])]
    items.with_columns(title=pl.Series(titles)).write_parquet(folder / "shop" / "items.parquet")
    job = make_job(load_settings(DEMO, "inline", SMALL), folder / "shop", folder / "run", resume=False, overwrite=False)
    run_job(job, "inline", silent)
    return folder


@pytest.fixture(scope="module")
def data(world: Path) -> Path:
    return world / "run" / "devices" / "node-0"


@pytest.fixture(scope="module")
def page(world: Path, data: Path) -> Iterator[Page]:
    with page_of(*of(data), "--pictures", world / "shop") as page:
        yield page


@pytest.fixture(scope="module")
def user(data: Path) -> str:
    return Device.open(data).people()[0].user


@pytest.fixture(scope="module")
def opened(page: Page) -> httpx.Client:
    assert page.web.get(page.address, follow_redirects=True).status_code == 200
    return page.web


def test_nobody_gets_in_without_the_address(page: Page) -> None:
    for path in ("/", "/export?user=user-00", "/static/page.css", "/open", "/open?token=guess", "/open?token="):
        answer = httpx.get(f"http://{page.host}{path}")
        assert answer.status_code == 403, path
        assert "user-" not in answer.text
    wrong = httpx.get(f"http://{page.host}/", cookies={f"tessera-{page.host.split(':')[1]}": "guess"})
    assert wrong.status_code == 403


def test_a_foreign_name_of_this_machine_is_refused(opened: httpx.Client) -> None:
    """A page of the web whose name was bound to 127.0.0.1 comes with its own Host, even if it had the cookie."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1", "127.0.0.1.evil.example", ""):
        assert opened.get("/", headers={"host": host}).status_code in (400, 403), host


def test_what_another_page_asks_for_changes_nothing(opened: httpx.Client, data: Path, user: str) -> None:
    item = Device.open(data).recommend(user, 1)[0].item
    form = {"user": user, "item": item, "confirm": user}
    before = {file: file.read_bytes() for file in data.rglob("*") if file.is_file()}
    for path in ("/hide", "/add", "/correct", "/lean", "/policy", "/forget", "/import"):
        for origin in ("http://evil.example", "null", "http://127.0.0.1:1", ""):
            assert opened.post(path, data=form, headers={"origin": origin}).status_code == 403, (path, origin)
        assert opened.get(path, params=form).status_code == 405, path
    assert {file: file.read_bytes() for file in data.rglob("*") if file.is_file()} == before


def test_the_browser_is_told_to_load_nothing_from_anywhere_else(opened: httpx.Client) -> None:
    answer = opened.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"(src|href|action)=\"(https?:)?//", answer.text)
    cookie = opened.get("/open", params={"token": opened.cookies.jar and next(iter(opened.cookies.jar)).value})
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.headers["set-cookie"].split("; "))


def test_paths_lead_nowhere_else(opened: httpx.Client, world: Path, data: Path) -> None:
    for path in (
        "/static/../person/app.py",
        "/static/%2e%2e/guard.py",
        "/static//etc/passwd",
        "/picture?item=../../etc/passwd",
    ):
        assert opened.get(path).status_code == 404, path
    items = pl.read_parquet(data / "items.parquet")
    picture = opened.get("/picture", params={"item": items["item"][0]})
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content[:2] == b"\xff\xd8"
    outside = world / "elsewhere"
    shutil.copytree(data, outside)
    secret = world / "secret.jpg"
    shutil.copy(world / "shop" / items["image"][0], secret)
    items.with_columns(image=pl.lit("../secret.jpg")).write_parquet(outside / "items.parquet")
    with page_of(*of(outside), "--pictures", world / "shop") as page:
        page.web.get(page.address)
        assert page.web.get("/picture", params={"item": items["item"][0]}).status_code == 404


def test_too_much_and_hostile_archives_are_refused(opened: httpx.Client, data: Path, tmp_path: Path) -> None:
    people = Device.open(data).people()
    assert "at most 1 MB" in opened.post("/add", content=b"x" * 100_000, headers={"x-fragment": "list"}).text
    large = opened.post("/import", content=b"x" * (65 << 20), headers={"x-fragment": "said"})
    assert large.status_code == 400
    assert "at most 64 MB" in large.text
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../../escaped", "x")
        archive.writestr(
            "manifest.json", '{"format": "tessera-person", "user": "<b>eve</b>", "catalogue": "0", "n_items": 1}'
        )
    answer = opened.post("/import", content=(tmp_path / "bad.zip").read_bytes())
    assert answer.status_code == 400
    assert "That did not work" in answer.text
    assert "<b>eve" not in answer.text
    assert opened.post("/import", content=b"no zip").status_code == 400
    assert Device.open(data).people() == people
    assert not list(data.glob("tmp*")), "nothing of it is left"


def test_titles_are_text_and_nothing_else(opened: httpx.Client, user: str) -> None:
    opened.post("/add", data={"user": user, "item": MARKUP})
    text = opened.get("/", params={"user": user}).text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>alert" not in opened.get("/search", params={"user": user, "q": "alert"}).text
    said = opened.get("/", params={"user": user, "said": MARKUP}).text
    assert "<script>alert" not in said
    opened.post("/correct", data={"user": user, "item": MARKUP})


def test_without_scripts_every_change_works_and_is_in_the_files(opened: httpx.Client, data: Path, world: Path) -> None:
    device = Device.open(data)
    user = device.people()[1].user
    item = device.recommend(user, 1)[0]
    hidden = opened.post("/hide", data={"user": user, "item": item.item}, follow_redirects=True).text
    assert "It will not be recommended again." in hidden
    assert device.preferences(user).hidden == (item.item,)
    opened.post("/show", data={"user": user, "item": item.item})
    opened.post("/lean", data={"user": user, "image": "2", "text": "-1", "id": "0"})
    assert device.preferences(user).leaning == {"image": 2.0, "text": -1.0}
    opened.post("/learnt", data={"user": user})
    assert device.preferences(user).leaning == {}
    found = opened.get("/search", params={"user": user, "q": item.title}).text
    assert f'value="{item.item}"' in found
    opened.post("/add", data={"user": user, "item": item.item})
    assert item.item in {event.item for event in device.events(user)}
    opened.post("/correct", data={"user": user, "item": item.item})
    assert item.item not in {event.item for event in device.events(user)}
    policy = {
        "user": user,
        "secure": "on",
        "people": "80",
        "devices": "3",
        "max_asks_per_day": "50",
        "answers.train": "on",
    }
    opened.post("/policy", data=policy)
    now = device.policy
    assert (now.secure, now.people, now.adapters, now.answers) == ("required", 80, False, ("train",))
    wrong = opened.post("/policy", data=policy | {"people": "-3"})
    assert wrong.status_code == 400
    assert "people" in wrong.text
    assert device.policy == now
    archive = opened.get("/export", params={"user": user})
    (world / "person.zip").write_bytes(archive.content)
    assert opened.post("/forget", data={"user": user, "confirm": "somebody"}).status_code == 400
    opened.post("/forget", data={"user": user, "confirm": user})
    assert user not in {person.user for person in device.people()}
    back = opened.post("/import", content=archive.content, follow_redirects=True)
    assert f"Taken in: {user}" in back.text
    assert user in {person.user for person in device.people()}


def test_where_there_is_nothing_yet_it_says_so(world: Path, tmp_path: Path) -> None:
    with page_of(*of(world / "run" / "devices" / "node-3")) as page:
        assert "Nothing has left this device." in page.web.get(page.address, follow_redirects=True).text
    shutil.copytree(
        world / "run" / "devices" / "node-3", tmp_path / "new", ignore=shutil.ignore_patterns("private", "views")
    )
    with page_of(*of(tmp_path / "new")) as page:
        assert "it has not trained yet" in page.web.get(page.address, follow_redirects=True).text
    device = tessera.Device.open(tmp_path / "new")
    for person in device.people():
        device.forget(person.user)
    with page_of(*of(tmp_path / "new")) as page:
        assert "Nobody is on this device" in page.web.get(page.address, follow_redirects=True).text


@browser
def test_a_person_uses_it_in_a_browser(chromium: Any, world: Path, tmp_path: Path) -> None:
    """Recommendations, a slider, an event, something hidden, export, forget and import: by mouse and keyboard."""
    data, other = (world / "run" / "devices" / f"node-{node}" for node in (4, 5))
    device = tessera.Device.open(data)
    user = device.people()[0].user
    with page_of(*of(data), "--pictures", world / "shop") as page:
        tab = chromium.new_page(viewport={"width": 390, "height": 844})
        troubles: list[str] = []
        tab.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: None if page.host in request.url else troubles.append(request.url))
        tab.goto(page.address)
        titles = lambda: tab.locator("#list h3").all_inner_texts()  # noqa: E731
        before = titles()
        assert before == [one.title for one in device.recommend(user, 12)]
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is wider than a phone"
        tab.get_by_label("How it looks").focus()
        with tab.expect_response("**/lean"):
            for _ in range(12):
                tab.keyboard.press("ArrowRight")
                tab.wait_for_timeout(50)  # as a person moves it: several lists are on their way
        moved = float(tab.get_by_label("How it looks").input_value())
        assert wait(lambda: device.preferences(user).leaning.get("image") == moved), "the last move counts"
        assert wait(lambda: titles() == [one.title for one in device.recommend(user, 12)])
        assert device.preferences(user).leaning == {"image": 3.0}
        tab.get_by_role("button", name="As my device has learnt it").click()
        assert titles() == before
        tab.get_by_role("button", name=f"Do not recommend {before[0]} again").click()
        tab.wait_for_function("first => document.querySelector('#list h3').innerText != first", arg=before[0])
        assert titles()[0] == before[1]
        tab.get_by_label("Add something").fill(before[2])
        tab.get_by_role("button", name=f"Add {before[2]}", exact=True).click()
        tab.wait_for_load_state()
        assert before[2] in {event.title for event in device.events(user)}
        tab.get_by_role("button", name=f"Take {before[2]} back").click()
        tab.wait_for_load_state()
        assert before[2] not in {event.title for event in device.events(user)}
        with tab.expect_download() as download:
            tab.get_by_role("link", name="Export everything").click()
        download.value.save_as(tmp_path / "person.zip")
        tab.get_by_text(f"Forget {user}").click()
        tab.get_by_label("To go on, type the name").fill(user)
        tab.get_by_role("button", name="Forget", exact=True).click()
        tab.wait_for_load_state()
        assert user not in {person.user for person in device.people()}
        tab.get_by_label("Take in somebody").set_input_files(tmp_path / "person.zip")
        tab.get_by_role("button", name="Take in", exact=True).click()
        tab.get_by_text(f"Taken in: {user}").wait_for()
        assert not troubles
        tab.close()
    assert import_person(other, tmp_path / "person.zip").user == user


@browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(chromium: Any, page: Page, scheme: str) -> None:
    """No violation that axe knows of: contrast, labels, order of headings, names of buttons."""
    tab = chromium.new_page(color_scheme=scheme, bypass_csp=True)  # axe is a script that the page itself would not load
    tab.goto(page.address)
    tab.locator("details").evaluate_all("all => all.forEach(one => one.open = true)")
    tab.get_by_label("Add something").fill("a")
    tab.get_by_role("button", name="Search").click()
    tab.locator("#found li").first.wait_for()
    assert not violations(tab)
    tab.close()
