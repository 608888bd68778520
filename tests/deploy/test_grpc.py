"""A federation of real processes over real sockets: it runs, says why it fails, and leaves nothing behind."""

import json
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tessera.common.config.settings import Settings
from tessera.common.errors import RunError
from tessera.common.metrics.records import AbandonedRecord, Record, RoundRecord, write_line
from tessera.deploy.cli.federate import app
from tessera.deploy.executors.grpc import Watch, execute
from tessera.deploy.federation.certificates import CertificateError, make_certificates, make_node_key
from tessera.deploy.federation.processes import Process, remains, start, stop
from tessera.deploy.federation.registry import find
from tessera.deploy.federation.superlink import Control, Server, describe_app, start_superlink, wait_until_ready
from tessera.deploy.federation.supernode import explain, join, parse_address, start_supernode
from tessera.deploy.job import Job
from tessera.deploy.provisioning.partition import partition

pytestmark = pytest.mark.integration
SETTINGS: dict[str, Any] = {
    "name": "small",
    "data": {"folder": "shop"},
    "rounds": 1,
    "device": "cpu",
    "views": {"dim": 8, "id_dim": 8},
    "local": {"prior": 1.0},
    "evaluation": {"every": 1, "ks": [10], "baselines": False},
    "federation": {"nodes": 2},
}
linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="what is left is looked for in /proc")


def left_behind(folder: Path) -> list[int]:
    """Processes whose FLWR_HOME is below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            values = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(value.startswith(f"FLWR_HOME={folder}/".encode()) for value in values):
            found.append(int(path.parent.name))
    return found


def none_left(folder: Path) -> bool:
    """Whether nothing is left, allowing what was killed a moment to go."""
    for _ in range(20):
        if not left_behind(folder):
            return True
        time.sleep(0.1)
    return False


@pytest.fixture
def job(shop: Path, tmp_path: Path) -> Job:
    settings = Settings.model_validate(SETTINGS)
    return Job(settings, shop, partition(shop, tmp_path / "devices", 2), tmp_path / "run")


@dataclass
class Running:
    server: Server
    control: Control
    process: Process


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server for the tests that only talk to one."""
    server = Server.local(tmp_path_factory.mktemp("federation") / "server")
    make_certificates(server.folder, [], 1)
    process = start_superlink(server, server.folder / "server.log")
    try:
        wait_until_ready(server, process)
        yield Running(server, Control(server), process)
    finally:
        stop([process])
    assert none_left(server.folder)


# --- a whole run


def test_a_run_over_grpc_reports_its_progress_and_leaves_nothing_behind(job: Job, tmp_path: Path) -> None:
    lines: list[Record] = []
    execute(job, lines.append)
    assert [line.kind for line in lines] == ["item_statistics", "round", "evaluation", "result"]
    assert isinstance(lines[1], RoundRecord)
    assert lines[1].nodes == 2
    assert none_left(tmp_path)
    logs = job.run_dir / "federation" / "logs"
    assert {path.name for path in logs.iterdir()} == {
        "server.log",
        "serverapp.log",
        "workers.log",
        "node-0.log",
        "node-1.log",
    }
    assert all((folder / "node.key").stat().st_mode & 0o777 == 0o600 for folder in job.devices)


@pytest.mark.slow
def test_an_interrupted_run_is_stopped_and_can_be_resumed(job: Job, tmp_path: Path) -> None:
    def interrupt(line: Record) -> None:
        if line.kind == "round":
            raise KeyboardInterrupt

    job = replace(job, settings=job.settings.model_copy(update={"rounds": 2}))
    with pytest.raises(KeyboardInterrupt):
        execute(job, interrupt)
    assert none_left(tmp_path)
    assert json.loads((job.run_dir / "status.json").read_text())["state"] != "completed"
    lines: list[Record] = []
    execute(replace(job, resume=True), lines.append)
    assert lines[-1].kind == "result"
    assert lines[-1].rounds == 2
    assert none_left(tmp_path)


def test_a_run_that_fails_says_why_and_leaves_nothing_behind(job: Job, tmp_path: Path) -> None:
    job.run_dir.mkdir()
    (job.run_dir / "config.yaml").write_text("an earlier run")
    one = replace(
        job, devices=job.devices[:1], settings=Settings.model_validate(SETTINGS | {"federation": {"nodes": 1}})
    )
    with pytest.raises(RunError, match="holds a run already"):
        execute(one, print)
    assert none_left(tmp_path)
    assert "holds a run already" in (job.run_dir / "federation" / "logs" / "serverapp.log").read_text()


def test_fewer_devices_than_the_run_waits_for_are_refused_at_once(job: Job) -> None:
    with pytest.raises(RunError, match=r"federation\.nodes is 2, but there are 1"):
        execute(replace(job, devices=job.devices[:1]), print)


# --- the pieces, as the command uses them


def test_an_unregistered_device_is_refused_and_told_what_to_do(running: Running, tmp_path: Path) -> None:
    shown: list[str] = []
    server = f"127.0.0.1:{running.server.port}"
    with pytest.raises(
        RunError, match=r"key is not registered(.|\n)*tessera federate register --dir .* node\.key\.pub"
    ):
        join(tmp_path, server, running.server.certificates.ca, shown.append)
    assert any("Exit Code: 305" in line for line in shown)
    assert none_left(tmp_path)


def federate(*arguments: str) -> str:
    """What `tessera federate` says when it does its work."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_registered_device_comes_online_and_is_listed_until_it_is_revoked(running: Running, tmp_path: Path) -> None:
    public = make_node_key(tmp_path / "node.key")
    told = federate("register", "--dir", str(running.server.folder), str(public), str(public))
    assert told.count(": registered") == 1
    assert "was registered already" in told
    address, ca = f"localhost:{running.server.port}", running.server.certificates.ca
    node = start_supernode("node", tmp_path, address, ca, tmp_path / "home", tmp_path / "node.log")
    try:
        deadline = time.monotonic() + 30
        while "SuperNode ID" not in node.tail():
            node.require()
            assert time.monotonic() < deadline, node.tail()
            time.sleep(0.1)
        folder = ["--dir", str(running.server.folder)]
        (listed,) = json.loads(federate("list", *folder, "--json"))
        assert (listed["state"], listed["file"], listed["key"][:7]) == ("online", str(public), "SHA256:")
        assert f"{listed['number']}: revoked" in federate("revoke", *folder, str(public))
        assert "was revoked already" in federate("revoke", *folder, listed["number"])
        assert "revoked" in federate("list", *folder)
        with pytest.raises(RunError, match=r"was revoked, and no revoked key is taken again; (.*)remove node\.key"):
            running.control.register(public)
        assert node.popen.wait(60) is not None  # it sees that it is shut out, and ends by itself
    finally:
        stop([node])
    assert none_left(tmp_path)


def test_who_is_unknown_cannot_be_revoked(running: Running, tmp_path: Path) -> None:
    known = running.control.devices()
    for name in ("12345", str(make_node_key(tmp_path / "node.key"))):
        with pytest.raises(RunError, match=f"knows no device {name}"):
            find(known, name)


def test_what_is_no_public_key_is_refused(running: Running, tmp_path: Path) -> None:
    make_node_key(tmp_path / "node.key")
    for path in (tmp_path / "node.key", tmp_path / "none.pub"):
        with pytest.raises(CertificateError, match="no device's public key"):
            running.control.register(path)


def test_submit_ends_with_the_reason_when_the_run_fails(running: Running, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    (tmp_path / "empty").mkdir()
    paths = ["--dir", str(running.server.folder), "--catalogue", str(tmp_path / "empty"), "--runs", str(tmp_path)]
    result = CliRunner().invoke(app, ["submit", str(tmp_path / "config.yaml"), *paths])
    assert result.exit_code == 1
    assert isinstance(result.exception, RunError)
    assert "items.parquet does not exist" in str(result.exception)


def answers(host: str, port: int) -> bool:
    with socket.socket() as knocking:
        knocking.settimeout(5)
        return knocking.connect_ex((host, port)) == 0


def test_a_server_in_the_foreground_keeps_its_control_port_to_loopback_and_stops_on_sigterm_with_all_it_started(
    tmp_path: Path,
) -> None:
    make_certificates(tmp_path, [], 1)
    free = Server.local(tmp_path)
    where = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"
    ports = ["--host", where, "--port", str(free.port), "--control-port", str(free.control_port)]
    command = [
        sys.executable,
        "-c",
        "from tessera.deploy.cli.federate import app; app()",
        "server",
        "--dir",
        str(tmp_path),
        *ports,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any("Uvicorn running" in line for line in process.stdout)
        assert answers("127.0.0.1", free.control_port)
        assert answers(where, free.port)
        assert where == "127.0.0.1" or not answers(where, free.control_port), "--host moved the control port"
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert none_left(tmp_path)


def test_a_taken_port_is_reported_with_the_servers_log(tmp_path: Path) -> None:
    make_certificates(tmp_path, [], 1)
    server = Server.local(tmp_path)
    with socket.create_server(("127.0.0.1", server.port)):
        process = start_superlink(server, tmp_path / "server.log")
        try:
            with pytest.raises(RunError, match=r"server ended with exit code \d(.|\n)*already in use"):
                wait_until_ready(server, process)
        finally:
            stop([process])
    assert none_left(tmp_path)


def test_a_folder_without_a_server_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="tessera federate server --dir"):
        Server.load(tmp_path)
    server = Server.local(tmp_path)
    make_certificates(tmp_path, [], 1)
    server.save()
    assert Server.load(tmp_path) == server
    with pytest.raises(RunError, match="unavailable"):
        Control(server).submit(describe_app(Job(Settings.model_validate(SETTINGS), tmp_path, (), tmp_path), server))


# --- without Flower


@linux
def test_stopping_reaches_what_left_the_session_and_ignores_sigterm(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True)\n"
        "time.sleep(60)"
    )
    process = start("parent", ["python", "-c", parent], tmp_path / "home", tmp_path / "log")
    while "up" not in process.tail():
        time.sleep(0.05)
    assert len(remains(process)) == 2
    other = start("other", ["python", "-c", "import time; time.sleep(60)"], tmp_path / "home", tmp_path / "other")
    stop([process], grace=0.5)
    assert not remains(process)
    other.require()
    stop([other])


def test_the_app_carries_what_the_run_is(job: Job, tmp_path: Path) -> None:
    strange = replace(job, run_dir=tmp_path / 'a "b" \\ é 😀', resume=True)
    config = tomllib.loads(describe_app(strange, Server.local(tmp_path)).decode())["tool"]["flwr"]["app"]["config"]
    assert Settings.model_validate_json(config["settings"]) == job.settings
    assert config["run-dir"] == str(strange.run_dir)
    assert config["resume"] is True


def test_only_complete_and_new_lines_are_seen(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    told = [AbandonedRecord(round=round, reason="nobody is there") for round in (1, 2, 3)]
    first, second, third = map(write_line, told)
    metrics.write_text(first + second + third[:6])
    watch = Watch(tmp_path)
    assert watch.lines() == []
    metrics.write_text(first)  # a resumed run cuts off what came after its checkpoint
    assert watch.lines() == []
    assert not watch.begun
    with metrics.open("a") as file:
        file.write(second + third[:9])
    assert watch.lines() == [told[1]]
    with metrics.open("a") as file:
        file.write(third[9:])
    assert watch.lines() == [told[2]]
    assert watch.begun


def test_the_status_of_an_earlier_run_does_not_count(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    status.write_text('{"run": "a", "state": "completed"}')
    watch = Watch(tmp_path)
    assert watch.state() == ("", "")
    (tmp_path / "new").write_text('{"run": "b", "state": "failed", "reason": "round 1: no"}')
    (tmp_path / "new").replace(status)
    assert watch.state() == ("failed", "round 1: no")


@pytest.mark.parametrize(
    ("address", "parts"), [("server.example:9092", ("server.example", 9092)), ("[::1]:80", ("::1", 80))]
)
def test_addresses(address: str, parts: tuple[str, int]) -> None:
    assert parse_address(address) == parts


@pytest.mark.parametrize("address", ["server.example", "https://server.example:9092", ":9092", "::1:80"])
def test_what_is_no_address_is_named(address: str) -> None:
    with pytest.raises(RunError, match="HOST:PORT"):
        parse_address(address)


def test_other_ends_of_a_device_show_its_log(tmp_path: Path) -> None:
    assert "no space" in explain("OSError: no space left", tmp_path)
