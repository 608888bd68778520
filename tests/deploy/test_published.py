"""The model that a run publishes: given out over HTTPS, pulled by devices that take no part, and recommended by at once."""

import json
import shutil
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tessera.client.app import device_app
from tessera.client.people.events import People
from tessera.client.published.pull import NAMES, Unreachable, _install, pull
from tessera.client.recommend import Personal
from tessera.common.data.catalogue import ITEMS, save_items
from tessera.common.errors import DataError
from tessera.common.protocol.published import Published
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.superlink import Server, publication
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition
from tessera.server.app import serve
from tessera.server.live.continuation import read_source
from tessera.server.live.publication import published_in
from tests.deploy.test_people_commands import run
from tests.support.catalogues import small_dataset, small_job
from tests.support.commands import wait

FIRST = [f"i{item:03d}" for item in range(6)]


@dataclass
class Shown:
    """A server that gives out what a run published, and the run."""

    server: Server
    job: Job
    said: list[str]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.model_port}"

    @property
    def ca(self) -> Path:
        return self.server.certificates.ca

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=self.ca)
        return httpx.Client(base_url=f"https://{self.address}", verify=context, trust_env=False)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("published")
    plain = Server.local(folder / "server")
    server = Server(plain.folder, plain.host, plain.port, plain.control_port, plain.port + 2)
    make_certificates(server.folder, [], 1)
    job = small_job(folder, "run", 2, planted=True)
    grid = InlineGrid(device_app(job.run_dir / "devices"), 2)
    serve(grid, job.settings, job.catalogue, job.run_dir, resume=False, published=server.published)
    said: list[str] = []
    with publication(server, said.append):
        yield Shown(server, job, said)


def add(device: Path, user: str) -> None:
    People(device).add_person(user)
    for item in FIRST:
        People(device).add_event(user, item)


def test_a_stranger_is_recommended_to_by_the_published_model(shown: Shown, tmp_path: Path) -> None:
    """As on a device that took part, for somebody who did not train there; and who has no history gets what is popular."""
    device, there = tmp_path / "device", shown.job.devices[0]
    arguments = ("--server", shown.address, "--ca", shown.ca, "--data-dir", device)
    assert "bytes came" in run("device", "pull", *arguments)
    assert json.loads(run("device", "pull", "--json", *arguments))["bytes"] == 0
    for folder in (device, there):
        add(folder, "zoe")
    told = json.loads(run("recommend", "--user", "zoe", "--json", "--data-dir", device))
    assert (told["based_on"], len(told["items"])) == ("history", 10)
    assert told == json.loads(run("recommend", "--user", "zoe", "--json", "--data-dir", there))
    assert "not trained yet" in run("recommend", "--user", "zoe", "--data-dir", device)
    run("device", "add-person", "yan", "--data-dir", device)
    told = json.loads(run("recommend", "--user", "yan", "--json", "--data-dir", device))
    assert (told["based_on"], told["reliance"], len(told["items"])) == ("popularity", {}, 10)
    scores = [item["score"] for item in told["items"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] < 12
    assert "what is popular" in run("recommend", "--user", "yan", "--data-dir", device)
    assert json.loads(run("recommend", "--user", "person-0", "--json", "--data-dir", there))["based_on"] == "training"


def test_what_is_published_is_the_selected_round(shown: Shown) -> None:
    published = published_in(shown.server.published)
    assert published
    assert published.round == Personal.open(shown.job.devices[0]).task.round
    names = {file.sha256 for file in published.files.values()}
    assert names <= {path.name for path in (shown.server.published / "blobs").iterdir()}


def test_a_pull_that_was_cut_goes_on_and_what_is_damaged_is_not_taken(shown: Shown, tmp_path: Path) -> None:
    published = published_in(shown.server.published)
    assert published
    file = published.files["tensors"]
    whole = (shown.server.published / "blobs" / file.sha256).read_bytes()
    part = tmp_path / "device" / ".pull" / f"{file.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(whole[:1000])
    pulled = pull(tmp_path / "device", shown.address, shown.ca)
    assert pulled.bytes == sum(one.size for one in published.files.values()) - 1000
    assert not part.parent.exists()

    held = tmp_path / "device" / "views" / f"{published.tensors}.safetensors"
    held.unlink()
    part.parent.mkdir()
    part.write_bytes(bytes(1000))
    with pytest.raises(DataError, match="not what its hash says"):
        pull(tmp_path / "device", shown.address, shown.ca)
    assert not held.exists()
    pull(tmp_path / "device", shown.address, shown.ca)
    assert held.read_bytes() == whole


def test_what_gives_the_model_out_is_started_again_when_it_is_killed(shown: Shown) -> None:
    def answers() -> bool:
        with suppress(httpx.HTTPError), shown.client() as client:
            return client.get("/manifest.json").status_code == 200
        return False

    name = "tessera.deploy.federation.publication"
    (giving,) = (one for one in psutil.Process().children() if name in one.cmdline())
    giving.kill()
    assert wait(lambda: bool(shown.said) and answers())
    assert shown.said == ["What gives out the published model ended with exit code -9: it is started again"]


def test_a_device_with_other_items_is_left_as_it_was(shown: Shown, tmp_path: Path) -> None:
    (other,) = partition(small_dataset(tmp_path / "other", n_items=40), tmp_path / "others", 1)
    device = small_job(tmp_path, "run", 2).devices[0]  # 40 items of the same ids: fewer than the published 66
    assert pull(device, shown.address, shown.ca).model.catalogue.n_items == 66
    assert len(People(device).catalogue) == 66

    people = People(shown.job.devices[1])
    strange = people.catalogue.take([*range(1, 66), 0])
    save_items(strange, other)
    before = (other / ITEMS).read_bytes()
    with pytest.raises(DataError, match="other items than the published model"):
        pull(other, shown.address, shown.ca)
    assert (other / ITEMS).read_bytes() == before
    assert not (other / "views").exists()


def test_nothing_else_is_given_out(shown: Shown) -> None:
    (shown.server.published / "secret").write_text("secret")
    with shown.client() as client:
        assert client.get("/manifest.json").status_code == 200
        for path in (
            "/",
            "/blobs",
            "/blobs/",
            "/secret",
            "/blobs/../secret",
            "/blobs/%2e%2e%2fsecret",
            "/blobs/" + "0" * 64,
        ):
            assert client.get(path).status_code == 404, path
        assert client.post("/manifest.json").status_code == 405
        assert client.put("/blobs/" + "0" * 64).status_code == 405


def test_who_does_not_answer_is_named(shown: Shown, tmp_path: Path) -> None:
    ca = make_certificates(tmp_path / "other", [], 1).ca
    arguments = ("--server", shown.address, "--ca", ca, "--data-dir", tmp_path / "device")
    assert "does not prove to be the server" in run("device", "pull", *arguments, fails=True)
    with pytest.raises(Unreachable):
        pull(tmp_path / "device", f"127.0.0.1:{shown.server.port}", shown.ca)
    assert not (tmp_path / "device").exists()


def test_who_trained_in_a_run_that_the_model_goes_on_from_keeps_what_was_learnt(shown: Shown, tmp_path: Path) -> None:
    """They are recommended to by their own state, at the later run's views; the device took no part in that one."""
    on = small_job(tmp_path, "on", 2, planted=True)
    source = read_source(shown.job.run_dir)
    grid = InlineGrid(device_app(on.run_dir / "devices"), 2)
    serve(
        grid,
        on.settings,
        shown.job.catalogue,
        on.run_dir,
        False,
        published=tmp_path / "published",
        continues=source.path,
    )
    model = published_in(tmp_path / "published")
    assert model
    assert [(one.run, one.round) for one in model.continues] == [(source.run, source.round)]
    device = shown.job.devices[1]
    before = Personal.open(device).recommend("person-1", 5)
    install(device, tmp_path / "published", model)
    personal = Personal.open(device)
    assert (personal.task.run, personal.based_on("person-1")) == (model.run, "training")
    assert personal.recommend("person-1", 5) != before


def install(device: Path, published: Path, model: Published) -> None:
    """What a pull does once all has come."""
    for name, file in model.files.items():
        (device / ".pull").mkdir(exist_ok=True)
        shutil.copy(published / "blobs" / file.sha256, device / ".pull" / NAMES[name])
    _install(device, device / ".pull", model)
