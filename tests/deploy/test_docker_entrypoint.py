"""What containers do that needs no engine: assignments, signs of life, and that nobody's telemetry is on."""

import os
import time
from pathlib import Path

import pytest

from tessera.common.data.catalogue import load_catalogue
from tessera.common.data.folder_kinds import INTERACTIONS
from tessera.common.data.interactions import load_interactions
from tessera.common.errors import RunError
from tessera.common.secure.keys import NODE_KEY_FILE
from tessera.deploy.docker.entrypoint import registrations, take_assignment
from tessera.deploy.docker.healthcheck import FRESH
from tessera.deploy.environment import QUIET
from tessera.deploy.executors.run import partition_for
from tessera.deploy.federation.certificates import make_node_key
from tessera.deploy.provisioning.partition import partition
from tests.support.devices import people_settings, people_with_towers
from tests.support.qa_devices import qa_dataset, qa_settings

DEPLOY = Path(__file__).parents[2] / "deploy"


def people(folder: Path) -> list[str]:
    return list(load_interactions(folder, len(load_catalogue(folder, modalities=False))).users)


def test_the_assignments_of_all_devices_are_what_partition_gives(shop: Path, tmp_path: Path) -> None:
    for number, given in enumerate(partition(shop, tmp_path / "given", 3)):
        device = tmp_path / f"device-{number}"
        device.mkdir()
        take_assignment(device, str(shop), number, 3)
        assert people(device) == people(given)


def test_another_assignment_replaces_people_and_what_was_learnt_of_them_but_not_the_key(
    shop: Path, tmp_path: Path
) -> None:
    make_node_key(tmp_path / NODE_KEY_FILE)
    key = (tmp_path / NODE_KEY_FILE).read_bytes()
    take_assignment(tmp_path, str(shop), 0, 2)
    (tmp_path / "private").mkdir()
    take_assignment(tmp_path, str(shop), 0, 2)
    assert (tmp_path / "private").exists(), "the same assignment is left alone"
    take_assignment(tmp_path, str(shop), 1, 2)
    assert not (tmp_path / "private").exists()
    assert (tmp_path / NODE_KEY_FILE).read_bytes() == key
    assert people(tmp_path) == people(shop)[1::2]


def test_an_assignment_that_was_being_taken_when_killed_is_taken_again(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "assignment.json").write_text("{}")
    (tmp_path / INTERACTIONS).write_bytes(b"half")
    take_assignment(tmp_path, str(shop), 1, 2)
    assert people(tmp_path) == people(shop)[1::2]


@pytest.mark.parametrize("strategy", ["fedmosaic", "combined"])
def test_with_towers_devices_get_what_a_run_without_containers_gives_them(strategy: str, tmp_path: Path) -> None:
    if strategy == "fedmosaic":
        dataset, settings = qa_dataset(tmp_path / "data"), qa_settings(federation={"nodes": 3})
    else:
        dataset, settings = people_with_towers(tmp_path / "data", 6), people_settings(federation={"nodes": 3})
    for number, given in enumerate(partition_for(dataset, tmp_path / "given", settings)):
        device = tmp_path / f"device-{number}"
        device.mkdir()
        take_assignment(device, str(dataset), number, 3, settings.model_dump(mode="json"))
        (device / "assignment.json").unlink()
        files = {path.relative_to(given) for path in given.rglob("*") if path.is_file()}
        assert files == {path.relative_to(device) for path in device.rglob("*") if path.is_file()}
        assert all((device / path).read_bytes() == (given / path).read_bytes() for path in files)


def test_interactions_that_an_owner_brought_stay(tmp_path: Path) -> None:
    (tmp_path / INTERACTIONS).write_bytes(b"mine")
    take_assignment(tmp_path, "/nowhere", 0, 2)
    assert (tmp_path / INTERACTIONS).read_bytes() == b"mine"


def test_only_living_clients_are_counted_and_in_the_order_of_their_keys(tmp_path: Path) -> None:
    for name, key in {"a": "third", "b": "first", "c": "gone"}.items():
        (tmp_path / f"{name}.pub").write_text(key)
    long_ago = time.time() - 2 * FRESH
    os.utime(tmp_path / "c.pub", (long_ago, long_ago))
    assert list(registrations(tmp_path).items()) == [("first", tmp_path / "b.pub"), ("third", tmp_path / "a.pub")]
    with pytest.raises(RunError, match="no client shows its key"):
        registrations(tmp_path / "empty")


def test_the_image_is_as_quiet_as_the_processes_we_start() -> None:
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    for name, value in QUIET.items():
        assert f"{name}={value}" in dockerfile or not name.startswith("FLWR_")
