"""A folder that is taken for another is named for what it is, with the one that may be meant."""

from pathlib import Path

import pytest

from tessera.client.people.events import People
from tessera.common.data.folder_kinds import is_device, other_than_data
from tessera.common.datasets.recognise import no_dataset
from tessera.common.errors import DataError
from tessera.deploy.provisioning.partition import partition
from tests.support.catalogues import small_dataset


def run_folder(path: Path, dataset: Path) -> Path:
    """A run with two devices."""
    partition(dataset, path / "devices", 2)
    for name in ("config.yaml", "status.json"):
        (path / name).write_text("{}")
    return path


def told(folder: Path) -> str:
    with pytest.raises(DataError) as error:
        People(folder)
    return str(error.value)


def test_what_was_taken_for_a_devices_folder_is_named(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "runs" / "one", small_dataset(tmp_path / "data"))
    node = run / "devices" / "node-0"
    assert is_device(node)
    assert not is_device(tmp_path / "data")
    assert told(tmp_path / "nope").endswith("is no device's folder: it does not exist")
    assert told(run).endswith(f"is no device's folder but a run's: name a device, such as {node}, one of 2")
    assert f"but one that holds devices: name a device, such as {node}" in told(run / "devices")
    assert f"but one that holds runs: name a device, such as {node}" in told(run.parent)
    assert told(run / "config.yaml").endswith("it is a file")
    (tmp_path / "empty").mkdir()
    assert told(tmp_path / "empty").endswith("there is no interactions.parquet in it")


def test_what_was_taken_for_data_is_named(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "runs" / "one", small_dataset(tmp_path / "data"))
    assert "is a run's folder, and no data" in str(no_dataset(run))
    assert "is a device's folder, and no dataset" in str(no_dataset(run / "devices" / "node-1"))
    assert "holds devices, and no dataset" in str(no_dataset(run / "devices"))
    assert other_than_data(tmp_path / "data") == ""
