"""`tessera doctor` names what is wrong and what to do, over real certificates, keys, ports, folders and data."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import tessera.deploy.federation.certificates
from tessera.deploy.doctor import Finding, Level, examine
from tessera.deploy.doctor.device import check_device
from tessera.deploy.doctor.machine import PACKAGES, packages, ray_address
from tessera.deploy.doctor.server import check_address, check_server_folder
from tessera.deploy.federation.certificates import Certificates, make_certificates, make_node_key
from tessera.deploy.federation.superlink import Server
from tessera.deploy.provisioning.partition import partition
from tests.deploy.test_certificates import tls_server

NOBODY = 65534
DOCTOR = "from tessera.deploy.cli.main import main; sys.argv = ['tessera', 'doctor', *sys.argv[1:]]; main()"


def worst(findings: Iterator[Finding]) -> list[Finding]:
    """What is not ok; each says what to do."""
    found = [finding for finding in findings if finding.level is not Level.ok]
    assert all(finding.remedy for finding in found)
    return found


def only(findings: Iterator[Finding], level: Level) -> str:
    """The one finding that is not ok, with its remedy."""
    found = worst(findings)
    assert [finding.level for finding in found] == [level], found
    return f"{found[0].found}: {found[0].remedy}"


def expired(folder: Path, monkeypatch: pytest.MonkeyPatch, days: int) -> Certificates:
    """Certificates that were made `days` ago, for 30 days."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(days=days)

    with monkeypatch.context() as patch:
        patch.setattr(tessera.deploy.federation.certificates, "datetime", Then)
        return make_certificates(folder, ["server.example"], 30)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything, so root tries as somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    made = Server.local(tmp_path / "server")
    make_certificates(made.folder, ["server.example"], 365)
    made.save()
    return made


@pytest.fixture
def device(shop: Path, tmp_path: Path) -> Path:
    (folder,) = partition(shop, tmp_path / "devices", 1)
    make_node_key(folder / "node.key")
    folder.chmod(0o700)
    return folder


def doctor(*arguments: str | Path, blocked: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the command as it starts where the module `blocked` is not installed."""
    code = f"import sys; sys.modules.update({{{blocked!r}: None}} if {blocked!r} else {{}}); {DOCTOR}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


# --- the command


def test_where_everything_is_fine_it_says_so(server: Server, device: Path) -> None:
    with tls_server(server.certificates) as port:
        address = f"localhost:{port}"
        done = doctor("--dir", server.folder, "--data-dir", device, "--server", address, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1
    told = json.loads(done.stdout)
    assert told["problem"] == 0
    checked = {finding["topic"] for finding in told["findings"]}
    assert checked >= {"python", "packages", "certificates", "ports", "node key", "privacy", "data", "server", "disk"}
    assert any(re.match("24 people, [0-9]+ interactions, 80 items", finding["found"]) for finding in told["findings"])


def test_a_missing_package_is_a_problem_whose_remedy_is_shown() -> None:
    done = doctor(blocked="torch")
    assert done.returncode == 1, done.stderr
    assert re.search(r"^problem +packages +torch is not installed\n +to do: .*pip install", done.stdout, re.M)


def test_without_a_package_other_commands_point_to_the_doctor() -> None:
    code = "import sys; sys.modules['torch'] = None; from tessera.deploy.cli.main import main; "
    code += "sys.argv = ['tessera', 'demo']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "tessera doctor" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_what_is_always_needed_is_a_problem_when_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("flwr", "peft"):
        monkeypatch.setitem(sys.modules, module, None)
    told = {finding.found.split()[0]: finding for finding in packages()}
    assert told["flwr"].level is Level.problem
    assert told["peft"].level is Level.ok
    assert "only needed for adapters" in told["peft"].found


def test_releases_that_fit_are_those_of_the_project_file() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    for package in PACKAGES:
        for line in wanted:
            if found := re.fullmatch(rf"{package.name}(?:\[.*\])?(==|>=)(\d+)\.(\d+)(\.\*)?", line):
                least = int(found[2]), int(found[3])
                assert package.least == least
                assert package.below == ((least[0], least[1] + 1) if found[1] == "==" else None)


# --- a server


def test_a_server_with_good_certificates_and_free_ports_is_fine(server: Server) -> None:
    assert worst(check_server_folder(server.folder)) == []


def test_an_expired_certificate_is_to_be_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expired(tmp_path, monkeypatch, days=31)
    assert re.search(r"server\.pem expired on .*--renew", only(check_server_folder(tmp_path), Level.problem))


def test_a_certificate_about_to_expire_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expired(tmp_path, monkeypatch, days=10)
    assert re.search(r"server\.pem is valid until .*--renew", only(check_server_folder(tmp_path), Level.warning))
    make_certificates(tmp_path, [], 365, renew=True)
    assert worst(check_server_folder(tmp_path)) == []


def test_the_key_of_another_server_is_noticed(server: Server, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", [], 365)
    server.certificates.server_key.write_bytes(other.server_key.read_bytes())
    assert "is not the key of server.pem" in only(check_server_folder(server.folder), Level.problem)


def test_a_certificate_of_another_authority_is_noticed(server: Server, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", [], 365)
    server.certificates.ca.write_bytes(other.ca.read_bytes())
    assert "was not signed by ca.crt" in only(check_server_folder(server.folder), Level.problem)


def test_a_key_that_others_can_read_is_a_problem(server: Server) -> None:
    server.certificates.server_key.chmod(0o644)
    assert "chmod 600" in only(check_server_folder(server.folder), Level.problem)


def test_a_certificate_for_this_machine_alone_is_a_warning(tmp_path: Path) -> None:
    make_certificates(tmp_path, [], 365)
    assert "add --host NAME" in only(check_server_folder(tmp_path), Level.warning)


def test_a_folder_without_certificates_is_told_the_command(tmp_path: Path) -> None:
    assert "tessera federate certificates" in only(check_server_folder(tmp_path), Level.problem)


def test_a_held_port_names_who_holds_it(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.deploy.federation.certificates.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", server.port)):
        told = only(check_server_folder(server.folder), Level.problem)
    assert f"port {server.port} (devices) is held by process {os.getpid()} (" in told
    assert "--port" in told


def test_a_server_that_runs_holds_its_own_port(server: Server) -> None:
    with tls_server(server.certificates) as port:
        Server(server.folder, "127.0.0.1", port, server.control_port).save()
        findings = list(check_server_folder(server.folder))
    assert worst(iter(findings)) == []
    assert any("the server answers" in finding.found for finding in findings)


def test_a_server_that_cannot_prove_itself_or_does_not_answer(server: Server, tmp_path: Path) -> None:
    other = make_certificates(tmp_path / "other", [], 365)
    with tls_server(server.certificates) as port:
        stranger = check_address(f"localhost:{port}", other.ca)
    assert stranger.level is Level.problem
    assert "does not prove to be the server" in stranger.found
    assert "take ca.crt" in stranger.remedy
    silent = check_address(f"localhost:{port}", server.certificates.ca)
    assert silent.level is Level.problem
    assert "start the server" in silent.remedy


# --- a device


def test_a_device_that_is_fine(device: Path) -> None:
    assert worst(check_device(device)) == []


def test_a_folder_that_cannot_be_read(device: Path) -> None:
    device.chmod(0)
    with as_nobody():
        told = only(check_device(device), Level.problem)
    device.chmod(0o700)
    assert re.search("cannot be read: Permission denied.*chown", told)


def test_a_folder_that_cannot_be_written_to() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        with as_nobody():
            told = only(check_device(Path(folder)), Level.problem)
    assert "cannot be written to" in told


def test_a_key_or_public_half_that_is_wrong(device: Path, tmp_path: Path) -> None:
    (device / "node.key.pub").write_bytes(make_node_key(tmp_path / "other.key").read_bytes())
    assert re.search(r"not the public half.*register this one", only(check_device(device), Level.problem))
    (device / "node.key").write_text("nonsense")
    assert "bring it back from a backup" in only(check_device(device), Level.problem)
    (device / "node.key").unlink()
    assert "tessera federate key" in only(check_device(device), Level.warning)


def test_private_files_that_others_can_read_are_counted(device: Path) -> None:
    device.chmod(0o755)
    (device / "interactions.parquet").chmod(0o644)
    assert re.search(r"1 private files.*interactions\.parquet.*chmod 700", only(check_device(device), Level.warning))


def test_data_that_cannot_be_loaded(device: Path) -> None:
    content = (device / "interactions.parquet").read_bytes()
    (device / "interactions.parquet").write_bytes(content[: len(content) // 2])
    assert "interactions.parquet is not a readable parquet file" in only(check_device(device), Level.problem)


# --- Ray


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert "a run starts its own" in ray_address().found
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{cluster.getsockname()[1]}")
        assert "a cluster answers" in ray_address().found
    assert "unset RAY_ADDRESS" in only(iter([ray_address()]), Level.warning)


def test_what_lies_in_folders_is_not_looked_at_without_being_asked() -> None:
    topics = {finding.topic for finding in examine(None, None, None, None)}
    assert topics == {"python", "packages", "compute", "disk", "memory", "ray"}
