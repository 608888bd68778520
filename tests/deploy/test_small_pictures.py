"""Small pictures go along with the published model: only what changed, nothing but pictures, and they are shown."""

import json
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tessera
from tessera.client.app import device_app
from tessera.client.people.events import People
from tessera.client.published.pull import pull
from tessera.client.published.small_pictures import SmallPictures, add_pictures, take_pictures
from tessera.common.data.catalogue import load_catalogue, save_items
from tessera.common.data.pictures import SMALL_SIDE, require_small, small_picture
from tessera.common.errors import DataError
from tessera.common.protocol.published import SMALL_BYTES, PictureList
from tessera.deploy.executors import inline
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.superlink import Server, publication
from tessera.deploy.job import Job
from tessera.deploy.pages.person.pictures import Pictures
from tessera.server.app import serve
from tessera.server.live.publication import published_in
from tests.deploy.test_people_commands import run
from tests.support.catalogues import small_job


def picture(path: Path, colour: str, size: tuple[int, int] = (400, 300)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, exif=b"Exif\0\0taken at home")


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[tuple[Server, Job]]:
    """A server that publishes a run on items of which five have pictures, two of them the same, one outside the dataset."""
    plain = Server.local(tmp_path / "server")
    server = Server(plain.folder, plain.host, plain.port, plain.control_port, plain.port + 2)
    make_certificates(server.folder, [], 1)
    job = small_job(tmp_path, "run", 2, planted=True, federation={"pictures": True})
    catalogue = load_catalogue(job.catalogue)
    for at, colour in enumerate(("red", "red", "green", "blue")):
        picture(job.catalogue / "images" / f"{at}.jpg", colour)
    picture(tmp_path / "secret.jpg", "black")
    images = (*(f"images/{at}.jpg" for at in range(4)), "../secret.jpg", *[""] * (len(catalogue) - 5))
    replace(catalogue, images=images).save(job.catalogue)
    publish(server, job, resume=False)
    with publication(server, lambda line: None):
        yield server, job


def publish(server: Server, job: Job, resume: bool) -> None:
    grid = InlineGrid(device_app(job.run_dir / "devices"), 2)
    serve(grid, job.settings, job.catalogue, job.run_dir, resume=resume, published=server.published)


def test_a_device_takes_what_it_lacks_and_shows_it(shown: tuple[Server, Job], tmp_path: Path) -> None:
    server, job = shown
    device, items = tmp_path / "zoes", load_catalogue(job.catalogue, modalities=False).items
    where = ("--server", f"127.0.0.1:{server.model_port}", "--ca", server.certificates.ca, "--data-dir", device)
    assert json.loads(run("device", "pull", "--json", *where))["pictures"] == 0
    assert not (device / "pictures").exists()
    told = json.loads(run("device", "pull", "--json", "--pictures", *where))
    assert told["pictures"] == 4
    assert 0 < told["bytes"] < 4 * SMALL_BYTES
    assert len(list((device / "pictures").glob("*.jpg"))) == 3
    assert json.loads(run("device", "pull", "--json", "--pictures", *where))["bytes"] == 0

    pictures, opened = Pictures(device, None), tessera.Device.open(device)
    assert pictures.there
    for at in range(4):
        file = opened.picture(items[at])
        assert file
        assert b"taken at home" not in file.read_bytes()
        assert pictures.small(items[at])
    assert opened.picture(items[4]) is None
    People(device).add_person("zoe")
    People(device).add_event("zoe", items[9])
    listed = json.loads(run("recommend", "--user", "zoe", "-k", len(items), "--json", "--data-dir", device))["items"]
    assert {one["item"] for one in listed if "picture" in one} == set(items[:4])
    assert all(Path(one["picture"]).exists() for one in listed if "picture" in one)


def test_only_what_changed_comes_again(shown: tuple[Server, Job], tmp_path: Path) -> None:
    server, job = shown
    address, ca = f"127.0.0.1:{server.model_port}", server.certificates.ca
    pull(tmp_path / "zoes", address, ca, pictures=True)
    before = {path.name for path in (tmp_path / "zoes" / "pictures").glob("*.jpg")}
    blobs = server.published / "blobs"
    picture(job.catalogue / "images" / "2.jpg", "yellow")
    (job.run_dir / "config.yaml").unlink()  # another run of the same name, whose best round is published anew
    publish(server, job, resume=False)
    pulled = pull(tmp_path / "zoes", address, ca, pictures=True)
    after = {path.name for path in (tmp_path / "zoes" / "pictures").glob("*.jpg")}
    assert (len(before & after), len(after - before), len(before - after), pulled.pictures) == (2, 1, 1, 4)
    assert {Path(name).stem for name in after} <= {path.name for path in blobs.iterdir()}
    assert published_in(server.published)


def test_nothing_but_small_pictures_is_taken(tmp_path: Path) -> None:
    content, listed = BytesIO(), {0: ("0" * 64, 100)}
    Image.new("RGB", (SMALL_SIDE + 1, 4)).save(content, "JPEG")
    bad = [b"<script>", content.getvalue(), b"\xff\xd8" + bytes(200), bytes(SMALL_BYTES + 1)]
    for hostile in bad:
        with pytest.raises(DataError, match="is no small picture"):
            take_pictures(tmp_path, PictureList(rows=listed), lambda name, size, hostile=hostile: hostile)
        assert not list(tmp_path.rglob("*"))
    for text in ('{"rows": {"0": ["../../etc", 5]}}', '{"rows": {"0": ["' + "0" * 64 + '", 99999]}}', "[]", "{"):
        with pytest.raises(DataError, match="there is no list of pictures"):
            PictureList.read(text.encode(), "there")


def test_a_picture_of_any_kind_becomes_a_small_one(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (900, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    content = small_picture(tmp_path / "noise.png", SMALL_BYTES)
    assert len(content) <= SMALL_BYTES
    require_small(content, SMALL_BYTES, "it")


def test_a_device_that_has_taken_pictures_gets_those_of_new_items_in_a_run(tmp_path: Path) -> None:
    """Of two devices that lack the last items: the one that wants none gets none."""
    job = small_job(tmp_path, "run", 8, planted=True, rounds=1, federation={"pictures": True})
    whole = load_catalogue(job.catalogue)
    picture(job.catalogue / "images" / "new.png", "green")
    images = (*[""] * (len(whole) - 1), "images/new.png")
    replace(whole, images=images).save(job.catalogue)
    wants, other = [device for device in job.devices if people_have(device) + 1 < len(whole)][:2]
    for device in (wants, other):
        save_items(load_catalogue(device, modalities=False).take(np.arange(people_have(device) + 1)), device)
    take_pictures(wants, PictureList(rows={}), lambda name, size: b"")
    inline.execute(job, lambda line: None)
    file = SmallPictures(wants).files[whole.items[-1]]
    require_small(file.read_bytes(), SMALL_BYTES, "it")
    assert not (other / "pictures").exists()
    with pytest.raises(DataError, match="is no small picture"):
        add_pictures(wants, {0: b"<script>"})
    assert SmallPictures(wants).files == {whole.items[-1]: file}


def people_have(device: Path) -> int:
    """The last row that anybody on a device had."""
    people = People(device)
    return max(people.catalogue.items.index(one.item) for user in people.users() for one in people.events(user))
