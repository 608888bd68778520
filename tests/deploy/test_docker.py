"""docker-compose.yml with a real engine: from a fresh copy to a result, and what is lost when containers are killed."""

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tessera.common.utils.atomic_files import read_json
from tests.support.devices import people_settings, people_with_towers
from tests.support.metrics import read_metrics
from tests.support.qa_devices import count_as_fitted, qa_dataset, qa_settings

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]
SOURCES = ("benchmarks", "client", "common", "deploy", "server", "tessera", ".dockerignore", "docker-compose.yml")
SOURCES += ("docker-compose.cuda.yml", "LICENSE", "pyproject.toml")
OWNER = 1234
"""Who owns the copy where root runs the test: neither root nor the image's own user."""
CONFIG = """\
name: test
data: {folder: shop, kind: shop}
views: {operators: [], dim: 16, id_dim: 16}
evaluation: {every: 100}
rounds: """
PEOPLE = "import polars; print(*sorted(set(polars.read_parquet('/device/interactions.parquet')['user'])))"
SECONDS = 300.0


@dataclass(frozen=True)
class Federation:
    """The containers of one copy of the repository."""

    folder: Path
    project: str
    program: tuple[str, ...]
    data: Path
    """What is mounted as data: datasets with towers."""

    def compose(self, *arguments: str, run: str = "first", expect: int = 0) -> str:
        """Run a command of compose for a run; return what it said. It must exit with `expect`."""
        command = [*self.program, "--project-name", self.project, *arguments]
        environment = os.environ | {"CONFIG": "benchmarks/test.yaml", "RUN": run, "TESSERA_DATA": str(self.data)}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=2 * SECONDS
        )
        assert done.returncode == expect, (done.stdout + done.stderr)[-5000:]
        return done.stdout + done.stderr

    def configure(self, rounds: int) -> None:
        """Set how many rounds a run has."""
        self.write(f"{CONFIG}{rounds}\n")

    def write(self, config: str) -> None:
        """Set what a run is of."""
        (self.folder / "benchmarks" / "test.yaml").write_text(config)

    def rounds(self, run: str) -> list[dict[str, Any]]:
        """The rounds that a run has reported."""
        return [line for line in read_metrics(self.folder / "runs" / run) if line["kind"] == "round"]

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers."""
        labels = {"project": self.project, "service": service}
        filters = [f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()]
        return docker("ps", "--all", "--quiet", "--no-trunc", *filters).split()


def docker(*arguments: str) -> str:
    """What docker answers."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, timeout=SECONDS).stdout


def compose_program() -> tuple[str, ...]:
    """Docker Compose or docker-compose; skips, with the reason, where there is no engine or neither of them."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers: `docker info` fails")
    for program in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(program[0]) and not subprocess.run([*program, "version"], capture_output=True).returncode:
            return program
    pytest.skip("neither `docker compose` nor docker-compose is installed")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in {SECONDS:g} s: {what}"
        time.sleep(1.0)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    program = compose_program()
    folder = tmp_path_factory.mktemp("copy") / "tessera"
    folder.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    if os.geteuid() == 0:
        subprocess.run(["chown", "--recursive", f"{OWNER}:{OWNER}", str(folder)], check=True)
    data = folder.parent / "data"
    count_as_fitted(qa_dataset(data / "questions"))
    (data / "questions" / "dataset.json").write_text('{"kind": "questions"}')
    count_as_fitted(people_with_towers(data / "people", 12))
    made = Federation(folder, f"tessera-{uuid4().hex[:8]}", program, data)
    try:
        yield made
    finally:
        made.compose("down", "--volumes", "--timeout", "5")
        assert not docker("volume", "ls", "--quiet", f"--filter=label=com.docker.compose.project={made.project}")


def test_a_fresh_copy_trains_and_exits_with_the_status_of_the_run(federation: Federation) -> None:
    federation.configure(rounds=2)
    said = federation.compose("up", "--build", "--exit-code-from", "train", "--scale", "client=2")
    assert "popularity" in said
    run = federation.folder / "runs" / "first"
    assert [line["round"] for line in federation.rounds("first")] == [1, 2]
    assert {line["nodes"] for line in federation.rounds("first")} == {2}
    assert read_json(run / "status.json")["state"] == "completed"
    assert "popularity" in (run / "report.txt").read_text()
    owner = federation.folder.stat().st_uid
    written = {path.stat().st_uid for path in (run.parent, *run.rglob("*"))}
    assert written == {owner} or owner == 0, "who started it can read and remove what it left"


def test_killed_containers_come_back_and_the_run_goes_on(federation: Federation) -> None:
    federation.configure(rounds=2000)  # more than there are before its server is killed
    federation.compose("up", "--detach", run="second")  # three clients now: users are assigned anew
    until(lambda: any(line["nodes"] == 3 for line in federation.rounds("second")), "a round of three clients")
    clients = federation.containers("client")
    keys = [docker("exec", client, "cat", "/device/node.key.pub") for client in clients]
    check_privacy(clients, keys)
    check_masks(federation, clients)
    check_users([*clients, *federation.containers("server"), *federation.containers("train")])
    check_client_comes_back(federation, clients[0])
    assert [docker("exec", client, "cat", "/device/node.key.pub") for client in clients] == keys
    check_server_comes_back(federation)


@pytest.mark.parametrize("strategy", ["fedmosaic", "combined"])
def test_devices_of_three_classes_train_in_containers(federation: Federation, strategy: str) -> None:
    asks = strategy == "fedmosaic"
    data = {"folder": "questions", "kind": "questions"} if asks else {"folder": "people"}
    classes = {"classes": ["tiny", "small", "base"]}
    settings = qa_settings if asks else people_settings
    made = settings(mosaic=classes, data=data, name="test", rounds=2, federation={"nodes": 3})
    federation.write(json.dumps(made.model_dump(mode="json")))
    said = federation.compose("up", "--build", "--exit-code-from", "train", run=strategy)
    rounds = federation.rounds(strategy)
    assert [(line["round"], line["nodes"]) for line in rounds] == [(1, 3), (2, 3)]
    report = (federation.folder / "runs" / strategy / "report.txt").read_text()
    for name in classes["classes"] if asks else ["hr"]:
        assert name in report.lower(), said[-3000:]


def check_privacy(clients: list[str], keys: list[str]) -> None:
    """Each client has a key and people of its own, and of the server what is public."""
    assert len(set(keys)) == len(clients)
    people = Counter(user for client in clients for user in docker("exec", client, "python", "-c", PEOPLE).split())
    assert len(people) == 500
    assert set(people.values()) == {1}, "nobody is on two devices"
    for client in clients:
        mounts = {mount["Destination"] for mount in json.loads(docker("inspect", client))[0]["Mounts"]}
        assert mounts == {"/device", "/published", "/registration", "/data"}


def check_masks(federation: Federation, clients: list[str]) -> None:
    """The server reads the sum of all clients alone, whom an operator signed for whose key the server has not."""
    assert read_metrics(federation.folder / "runs" / "second")[0]["groups"] == 1
    for client in clients:
        known = json.loads(
            docker("exec", client, "tessera", "device", "keys", "list", "--data-dir", "/device", "--json")
        )
        assert [key["admitted"] for key in known["keys"].values()].count("operator") == len(clients)
    (server,) = federation.containers("server")
    assert "/operator" not in {mount["Destination"] for mount in json.loads(docker("inspect", server))[0]["Mounts"]}


def check_users(containers: list[str]) -> None:
    """No process but the init of a container, and for a moment docker's look at its health, runs as root; none has more
    rights than that needs."""
    for container in containers:
        rows = docker("top", container, "-eo", "uid,pid,comm,args").splitlines()[1:]
        roots = [row for row in rows if row.split()[0] == "0" and "healthcheck.py" not in row]
        assert all(row.split()[2] in ("docker-init", "tini") for row in roots), roots


def check_client_comes_back(federation: Federation, client: str) -> None:
    """A killed client is missed, refused while the server takes it to be there still, and then takes part again."""
    docker("kill", client)
    docker("start", client)
    until(lambda: federation.rounds("second")[-1]["nodes"] == 2, "a round without the killed client")
    until(lambda: federation.rounds("second")[-1]["nodes"] == 3, "a round with the client that came back")


def check_server_comes_back(federation: Federation) -> None:
    """With its server killed, a run fails; brought up again, it goes on where it was."""
    docker("kill", *federation.containers("server"))
    until(lambda: docker("wait", *federation.containers("train")).strip() != "0", "the end of the submitter")
    before = federation.rounds("second")[-1]["round"]
    federation.configure(rounds=before + 2)
    federation.compose("up", "--exit-code-from", "train", run="second")
    assert [line["round"] for line in federation.rounds("second")] == list(range(1, before + 3))
    assert "is complete" in federation.compose("up", "--exit-code-from", "train", run="second")


def test_the_override_for_cuda_asks_for_the_devices(federation: Federation) -> None:
    files = ("--file", "docker-compose.yml", "--file", "docker-compose.cuda.yml")
    said = federation.compose(*files, "config")
    assert said.count("tessera:cuda") == 3
    assert said.count("nvidia") == 2
