"""Keys of devices in a federation of real processes: what an operator signs, what devices take, and what their owners see."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tessera.client.owner.ledger import Ledger
from tessera.common.config.settings import Settings
from tessera.common.errors import RunError
from tessera.deploy.cli.main import app
from tessera.deploy.executors.grpc import carry_out
from tessera.deploy.federation.superlink import Control, Server
from tessera.deploy.federation.supernode import public_key
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition
from tessera.deploy.provisioning.trial import answer_for_few
from tests.deploy.test_executors import silent
from tests.deploy.test_grpc import SETTINGS
from tests.support.federations import federation_of
from tests.support.metrics import read_metrics


def tessera(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def federation(shop: Path, tmp_path: Path) -> Iterator[tuple[Server, list[Path]]]:
    """A server and four devices, all registered, whose policies name an operator."""
    devices = partition(shop, tmp_path / "devices", 4)
    answer_for_few(devices)
    tessera("federate", "operator", tmp_path / "operator.key")
    operator = (tmp_path / "operator.key.pub").read_text().strip()
    for device in devices:
        tessera("device", "policy", "set", f"operator={operator}", "--data-dir", device)
    with federation_of(devices, tmp_path) as server:
        yield server, list(devices)


def nodes(run: Path) -> list[int]:
    return [line["nodes"] for line in read_metrics(run) if line["kind"] == "round"]


@pytest.mark.integration
def test_groups_are_of_the_devices_that_an_operator_signed_for(
    federation: tuple[Server, list[Path]], shop: Path, tmp_path: Path
) -> None:
    """The fourth device is one that the server alone knows: nobody shares keys with it, until the operator signs for it."""
    server, devices = federation
    settings = Settings.model_validate(SETTINGS | {"federation": {"nodes": 3}, "privacy": {"secure": True}})
    job = Job(settings, shop, (), tmp_path / "unsigned")
    with pytest.raises(RunError, match="operator-list"):
        carry_out(job, Control(server), silent)
    lines = [line for device in devices for line in Ledger(device).entries()[0]]
    assert {(line.kind, line.refused) for line in lines} == {("group", "operator-list")}

    keys, admitted = [public_key(device) for device in devices], server.folder / "admitted.json"
    sign = ("federate", "sign", admitted, "--key", tmp_path / "operator.key")
    assert "number 1, with 3 devices" in tessera(*sign, *keys[:3])
    carry_out(replace(job, run_dir=tmp_path / "three"), Control(server), silent)
    assert nodes(tmp_path / "three") == [3]
    assert "not on the operator's list" in (tmp_path / "three" / "run.log").read_text()

    assert "number 2, with 4 devices" in tessera(*sign, keys[3])
    revoke = ("federate", "revoke", "--dir", server.folder, keys[0])
    assert "--remove SHA256:" in tessera(*revoke)
    assert "is number 3, without them" in tessera(*revoke, "--operator", tmp_path / "operator.key")
    assert "operator's list" not in tessera(*revoke)
    carry_out(replace(job, run_dir=tmp_path / "revoked"), Control(server), silent)
    assert nodes(tmp_path / "revoked") == [3]
    shown = tessera("device", "keys", "list", "--data-dir", devices[1])
    assert shown.count(" operator") == 3
    assert shown.count(" nobody") == 1
    assert "is number 3" in shown


def test_an_owner_sees_the_keys_and_admits_them(shop: Path, tmp_path: Path) -> None:
    from tessera.client.owner.known_keys import admit
    from tessera.client.owner.policy import Policy
    from tessera.common.errors import PolicyRefused

    device = partition(shop, tmp_path / "devices", 1)[0]
    admit(device, Policy(), ["SHA256:a", "SHA256:b"], None)
    with pytest.raises(PolicyRefused):
        admit(device, Policy(), ["SHA256:a", "SHA256:c", "SHA256:d"], None)
    known = json.loads(tessera("device", "keys", "list", "--json", "--data-dir", device))["keys"]
    assert {name: key["admitted"] for name, key in known.items()} == {
        "SHA256:a": "first use",
        "SHA256:b": "first use",
        "SHA256:c": "",
        "SHA256:d": "",
    }
    tessera("device", "keys", "admit", "SHA256:c", "--data-dir", device)
    tessera("device", "keys", "drop", "SHA256:b", "--data-dir", device)
    shown = [line.split() for line in tessera("device", "keys", "list", "--data-dir", device).splitlines()]
    assert {line[0]: " ".join(line[3:]) for line in shown[1:]} == {
        "SHA256:a": "first use",
        "SHA256:b": "nobody",
        "SHA256:c": "owner",
        "SHA256:d": "nobody",
    }
    admit(device, Policy(), ["SHA256:a", "SHA256:c", "SHA256:d"], None)
    wrong = CliRunner().invoke(app, ["device", "keys", "admit", "SHA256:x", "--data-dir", str(device)])
    assert "SHA256:x was never seen here" in str(wrong.exception)
    tessera("device", "keys", "admit", "--all", "--data-dir", device)
    assert tessera("device", "keys", "list", "--data-dir", device).count("nobody") == 0


# --- what a policy makes of a run


def refusals(*arguments: object) -> dict[str, list[str]]:
    done = CliRunner().invoke(app, ["device", "policy", "check", *map(str, arguments), "--json"])
    said = {one["kind"]: [kind for kind, _ in one["refused"]] for one in json.loads(done.output)}
    assert done.exit_code == int(any(said.values()))
    return said


def test_an_owner_learns_what_a_run_would_be_refused(shop: Path, tmp_path: Path) -> None:
    """What `check` says is what the device then does: the rules are those at its door."""
    device = partition(shop, tmp_path / "devices", 20)[0]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(SETTINGS | {"federation": {"nodes": 3}, "local": {"local_epochs": 60}}))
    assert refusals(config, "--data-dir", device) == {
        "item_statistics": [],
        "train": ["local-epochs"],
        "evaluate": [],
        "select": [],
    }
    alone = refusals(config, "--set", "privacy.secure=false", "--set", "local.local_epochs=5", "--data-dir", device)
    assert alone == {"item_statistics": ["people"], "train": ["people"], "evaluate": ["people"], "select": []}
    shown = CliRunner().invoke(app, ["device", "policy", "check", str(config), "--data-dir", str(device)]).output
    assert (
        "train, in secure sums over 64 people or more: refused, local.local_epochs is 60, the most is 50 (local-epochs)"
        in shown
    )
    tessera("device", "policy", "set", "max_local_epochs=60", "--data-dir", device)
    assert not any(refusals(config, "--data-dir", device).values())
    assert "is in order" in tessera("device", "policy", "check", "--data-dir", device)


def test_devices_that_answer_questions_have_the_commands_too(tmp_path: Path) -> None:
    (tmp_path / "questions").mkdir()
    assert "local_epochs" in tessera("device", "policy", "show", "--data-dir", tmp_path)
    assert json.loads(tessera("device", "policy", "show", "--json", "--data-dir", tmp_path))["people"] == 64
    assert "0 answers" in tessera("device", "ledger", "--data-dir", tmp_path)
    nothing = CliRunner().invoke(app, ["device", "ledger", "--data-dir", str(tmp_path / "other")])
    assert "is no device's folder" in str(nothing.exception)
