"""The repository as a Flower app: what `flwr run .` bundles, starts and finds, in Flower's simulation and on a SuperLink."""

import io
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from tessera.client.app import device_app
from tessera.client.device_folder import simulated_devices
from tessera.client.owner.policy import Policy, write_policy
from tessera.common.errors import ConfigError, RunError
from tessera.common.metrics.records import read_result
from tessera.deploy.executors.inline import InlineGrid
from tessera.deploy.flower.server_app import RunConfig
from tessera.deploy.flower.simulation import simulated_nodes
from tessera.server.app import serve
from tests.support.catalogues import small_job

ROOT = Path(__file__).parents[2]
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of Flower's for each test."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


# --- what is bundled, and how a run config is read


def test_the_bundle_holds_settings_and_no_code() -> None:
    bundle = build_fab_from_disk(ROOT)
    names = zipfile.ZipFile(io.BytesIO(bundle)).namelist()
    assert {"pyproject.toml", "benchmarks/demo.yaml", "benchmarks/ml-latest-small/fedvlr-next.yaml"} <= set(names)
    assert {Path(name).suffix for name in names} == {".toml", ".yaml", ""}
    assert len(bundle) < 200_000


def test_the_run_config_has_defaults_and_reads_the_settings_it_names(tmp_path: Path) -> None:
    asked = RunConfig.read(APP["config"])
    assert asked.settings(ROOT, "ray", None).rounds == 40
    asked = RunConfig.read(APP["config"] | {"set": "rounds=3 name=mine"})
    settings = asked.settings(ROOT, "ray", 7)
    assert (settings.rounds, settings.name, settings.federation.nodes) == (3, "mine", 7)
    own = tmp_path / "own.yaml"
    own.write_text("name: own\ndata: {folder: shop}\n")
    assert RunConfig.read(APP["config"] | {"config": str(own)}).settings(ROOT, "grpc", None).name == "own"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": "mine.yaml"}, "mine.yaml is not in the app's bundle"),
        ({"set": "rounds"}, "write KEY=VALUE"),
        ({"set": 'name="a'}, "No closing quotation"),
        ({"resume": "perhaps"}, "run config: resume"),
        ({"rounds": 5}, "run config: rounds"),
        ({"admitted": "/nowhere/admitted.json"}, "tessera federate sign"),
    ],
)
def test_a_bad_run_config_is_named(changes: dict[str, object], reason: str) -> None:
    def read() -> None:
        asked = RunConfig.read(APP["config"] | changes)
        asked.list_of_devices()
        asked.settings(ROOT, "ray", None)

    with pytest.raises(ConfigError, match=reason):
        read()


# --- where a node finds its folder


def test_simulated_nodes_find_their_folders_while_the_run_lasts(tmp_path: Path) -> None:
    job, same = small_job(tmp_path), small_job(tmp_path, "same")
    grid = InlineGrid(device_app(), 2)
    with simulated_nodes(grid, grid.run.run_id, job.devices) as nodes:
        serve(nodes, job.settings, job.catalogue, job.run_dir, resume=False)
    assert not simulated_devices(grid.run.run_id).exists()
    serve(InlineGrid(device_app(same.devices[0].parent), 2), same.settings, same.catalogue, same.run_dir, resume=False)
    assert read_result(job.run_dir).scores == read_result(same.run_dir).scores


def test_a_device_takes_no_folder_but_its_owners(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What its node config names, whatever a simulation on the same machine is up to; and without that, none at all."""
    job, own = small_job(tmp_path), small_job(tmp_path, "own")
    grid = InlineGrid(device_app(), 2)
    for folder, config in zip(own.devices, grid.nodes.values(), strict=True):
        config["data-dir"] = str(folder)
        write_policy(folder, Policy(people=1))  # as a device's owner has to decide who has few people on it
    with simulated_nodes(grid, grid.run.run_id, job.devices):
        serve(grid, job.settings, job.catalogue, job.run_dir, resume=False)
    assert all((folder / "private").is_dir() for folder in own.devices)
    assert not any((folder / "private").exists() for folder in job.devices)
    homeless = small_job(tmp_path, "homeless")
    with pytest.raises(RunError, match="refused"):
        serve(InlineGrid(device_app(), 2), homeless.settings, homeless.catalogue, homeless.run_dir, resume=False)
    assert "has no data-dir" in caplog.text
