"""What a server signs, over real gRPC: devices go by its key, keep what it signed, and prove who told them two things."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tessera.client.owner.ledger import Ledger
from tessera.client.owner.statements import STATEMENTS, read_key, read_statements
from tessera.common.config.settings import Settings
from tessera.common.errors import RunError
from tessera.common.protocol.signed.keys import key_name
from tessera.deploy.cli.main import app
from tessera.deploy.executors.grpc import carry_out
from tessera.deploy.federation.superlink import Control, Server, describe_app
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition
from tessera.deploy.provisioning.trial import answer_for_few
from tests.deploy.test_executors import silent
from tests.deploy.test_grpc import SETTINGS
from tests.support.federations import federation_of
from tests.support.two_faces import lying_app

NODES = 3


def tessera(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["device", "server", *(str(one) for one in arguments)])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def federation(shop: Path, tmp_path: Path) -> Iterator[tuple[Server, list[Path]]]:
    """A server and three devices."""
    devices = partition(shop, tmp_path / "devices", NODES)
    answer_for_few(devices)
    with federation_of(devices, tmp_path) as server:
        yield server, list(devices)


def lie(job: Job, server: Server) -> None:
    """Run a job with the server that lies, to its end."""
    control = Control(server)
    job.run_dir.mkdir()
    bundle = lying_app(describe_app(job, server))
    run = control._ask("submit", lambda client: client.start_run(bundle))
    while not control.status(run).finished:
        time.sleep(0.2)


@pytest.mark.integration
def test_a_server_that_sends_one_device_other_views_is_proven_to_have_lied(
    federation: tuple[Server, list[Path]], shop: Path, tmp_path: Path
) -> None:
    server, devices = federation
    settings = Settings.model_validate(SETTINGS | {"federation": {"nodes": NODES}, "privacy": {"secure": True}})
    job = Job(settings, shop, (), tmp_path / "honest")
    carry_out(job, Control(server), silent)
    keys = {read_key(device).key for device in devices}
    assert len(keys) == 1
    pinned = key_name(keys.pop())
    assert tessera("key", "--data-dir", devices[0]).startswith(pinned)
    asked = [kind for one in read_statements(devices[0]) for kind, _, _ in one.asks]
    assert asked[:2] == ["item_statistics", "train"]
    assert "are the same to each" in tessera("compare", devices[1], devices[2], "--data-dir", devices[0])

    lie(replace(job, run_dir=tmp_path / "lying"), server)
    assert "worked on other tensors" in (tmp_path / "lying" / "run.log").read_text()  # no sum has that device in it
    shown = tessera("compare", *devices[1:], "--data-dir", devices[0], code=1)
    assert "train of round 1: two asks under the same masks that differ" in shown
    assert sum(str(device / STATEMENTS) in shown or str(device) in shown for device in devices) == 2
    pair = json.loads(tessera("compare", *devices[1:], "--json", "--data-dir", devices[0], code=1))[0]
    assert pair["one"]["tensors"] != pair["other"]["tensors"]
    assert {key_name(pair[name]["key"]) for name in ("one", "other")} == {pinned}

    server.signing_key.unlink()  # another key: nobody answers until owners say that it is right
    with pytest.raises(RunError, match="server-key"):
        carry_out(replace(job, run_dir=tmp_path / "stranger"), Control(server), silent)
    refused = Ledger(devices[0]).entries()[0][-1]
    offered = key_name(read_key(devices[0]).offered)
    assert (refused.refused, refused.round) == ("server-key", 0)
    assert f"tessera device server admit {offered}" in refused.reason
    for device in devices:
        tessera("admit", offered, "--data-dir", device)
    carry_out(replace(job, run_dir=tmp_path / "admitted"), Control(server), silent)
    tessera("admit", pinned, "--data-dir", devices[0], code=1)
