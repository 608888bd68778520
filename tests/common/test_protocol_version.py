"""Messages of another version are refused by both sides, and what a newer server adds does not disturb an older device."""

import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from tessera.client import app as client_app
from tessera.common.config.device import DeviceSettings
from tessera.common.errors import ConfigError
from tessera.common.protocol.messages import PROTOCOL, Task, pack_task, unpack_task
from tests.deploy.test_round_policy import carry_out, rounds, task_of
from tests.support.catalogues import small_job
from tests.support.splits import settings

TASK = Task("train", "run", 1, (0,), ("id",), "c0", DeviceSettings.of(settings(local={"loss": "bce"})))


def changed(**header: object) -> RecordDict:
    """The task with another header."""
    content = pack_task(TASK)
    content["task"] = ConfigRecord({**content["task"], **header})  # type: ignore[dict-item]
    return content


@pytest.mark.parametrize("version", [PROTOCOL + 1, 0, "2.0"])
def test_a_device_refuses_another_version_and_names_both(version: object) -> None:
    said = client_app.answer(changed(protocol=version), lambda settings: pytest.fail("it went to work"))
    reason = str(said.config_records["refusal"]["reason"])
    assert f"the server speaks protocol {version}, this device {PROTOCOL}" in reason


def test_a_device_refuses_a_server_that_says_no_version() -> None:
    content = pack_task(TASK)
    content["task"] = ConfigRecord({name: value for name, value in content["task"].items() if name != "protocol"})
    assert "protocol none" in str(client_app.answer(content, pytest.fail).config_records["refusal"]["reason"])


def test_a_server_counts_a_device_of_another_version_as_refused_and_names_it(tmp_path: Path) -> None:
    def older(question: Message, honest: Message) -> list[Message]:
        task = task_of(question)
        if (honest.metadata.src_node_id, task.kind, task.round) == (2, "train", 2):
            honest.content["answers"] = ConfigRecord({**honest.content["answers"], "protocol": 0})
        return [honest]

    job = small_job(tmp_path, "run", 3)
    carry_out(job, older)
    assert [line.get("dropped") for line in rounds(job)] == [None, {"refused": 1}, None, None]
    assert rounds(job)[1]["troubles"] == [
        f"node 2 is refused: it speaks protocol 0, this server {PROTOCOL}: install the same Tessera on both"
    ]


def test_what_a_newer_server_adds_is_left_out_by_a_device_but_refused_in_a_file() -> None:
    newer = json.loads(TASK.settings.model_dump_json())
    newer["fashion"] = "new"
    newer["local"]["patience"] = {"deep": 1}
    newer["local"]["loss"]["temperature"] = 3
    content = changed(settings=json.dumps(newer), mood="good")
    assert unpack_task(content)[0] == TASK
    with pytest.raises(ConfigError, match="temperature"):
        settings(local={"loss": {"name": "bce", "temperature": 3}})
    with pytest.raises(ConfigError, match="patience"):
        settings(local={"patience": 3})


def test_only_what_a_device_needs_travels() -> None:
    whole = settings(
        name="secret-trial",
        data={"folder": "secret-place"},
        federation={"nodes": 77},
        simulation={"address": "secret:1"},
    )
    said = DeviceSettings.of(whole).model_dump_json()
    assert "secret" not in said
    assert not {"name", "server", "federation", "simulation"} & json.loads(said).keys()
    assert json.loads(said)["local"] == whole.local.model_dump(mode="json")
