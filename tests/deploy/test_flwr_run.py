"""`flwr run .` as the documentation shows it, in Flower's simulation and on a SuperLink: the figures are `tessera train`'s."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tessera.common.metrics.names import HR, NDCG, TEST, MetricName
from tessera.common.metrics.records import read_result
from tessera.deploy.federation.processes import LOOPBACK, environment, free_port, program
from tests.deploy.test_grpc import left_behind, linux
from tests.support.commands import SECONDS, TESSERA, Start, commands, wait

pytestmark = [pytest.mark.integration, linux]
ROOT = Path(__file__).parents[2]
DOCUMENTED = (ROOT / "docs/federations.md").read_text().split("## As a Flower app")[1].split("\n## ")[0]
MEASURES = [MetricName(TEST, "all", metric, 50) for metric in (HR, NDCG)]


@pytest.fixture
def start_command() -> Iterator[Start]:
    with commands() as start:
        yield start


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home of Flower's. What runs with it, or with one beside it, is ended: `flwr run` leaves a SuperLink running."""
    yield tmp_path / "home"
    for process in left_behind(tmp_path):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(process).terminate()
    assert wait(lambda: not left_behind(tmp_path), 30), left_behind(tmp_path)


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """What `tessera train` reaches in two rounds."""
    folder = tmp_path_factory.mktemp("train")
    tessera("train", ROOT / "benchmarks/demo.yaml", "--set", "rounds=2", cwd=folder)
    return reached(folder / "runs" / "demo")


def reached(run: Path) -> list[float]:
    scores = read_result(run).scores
    return [scores[measure] for measure in MEASURES]


def tessera(*arguments: object, cwd: Path) -> None:
    done = subprocess.run([TESSERA, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=2 * SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr


def documented(beginning: str, **values: object) -> list[str]:
    """A command as the documentation shows it, with values for what they stand for there."""
    (line,) = re.findall(rf"^    ({re.escape(beginning)}.*)$", DOCUMENTED, re.MULTILINE)
    return shlex.split(in_place(line, **values))


def in_place(text: str, **values: object) -> str:
    for name, value in values.items():
        text = text.replace({"port": "9092", "control": "9093"}.get(name, name), str(value))
    return text


def flwr_run(command: list[str], home: Path, runs: Path, settings: str, **variables: str) -> str:
    """Start a run from the repository's root, and return what it said once it has ended."""
    command += ["--run-config", f'runs="{runs}" set="{settings}"']
    done = subprocess.run(
        [program("flwr"), *command[1:]], cwd=ROOT, env=environment(home) | variables, capture_output=True, text=True,
        timeout=2 * SECONDS,
    )  # fmt: skip
    assert (runs / "demo" / "status.json").exists(), done.stdout + done.stderr
    assert json.loads((runs / "demo" / "status.json").read_text())["state"] == "completed", done.stdout + done.stderr
    return done.stdout


def test_flwr_run_trains_in_flowers_simulation(tmp_path: Path, home: Path, figures: list[float]) -> None:
    ports = {f"FLWR_LOCAL_{name}_PORT": str(free_port()) for name in ("SUPERLINK_HTTP_API", "CONTROL_API")}
    command = documented("flwr run . --run-config")
    shown = flwr_run(command, home, tmp_path / "runs", "rounds=2", RAY_ADDRESS="local", **ports)
    assert "500 users on 2 nodes" in shown
    assert re.search(r"demo, round 2 +\d+\.\d+", shown)
    assert reached(tmp_path / "runs" / "demo") == pytest.approx(figures, rel=1e-3)  # rounding moves somebody by a place


@pytest.mark.slow
def test_flwr_run_trains_on_a_superlink_with_our_node_and_with_flowers(
    tmp_path: Path, home: Path, figures: list[float], start_command: Start
) -> None:
    server, devices = tmp_path / "server", tmp_path / "devices"
    ours, flowers = devices / "node-0", devices / "node-1"
    ports = {"port": free_port(), "control": free_port()}
    tessera("data", "shop", "shop", cwd=tmp_path)
    tessera("data", "partition", "shop", devices, "--nodes", 2, cwd=tmp_path)
    tessera("federate", "certificates", server, cwd=tmp_path)
    listening = ["--host", LOOPBACK, "--port", ports["port"], "--control-port", ports["control"]]
    up = start_command(tmp_path / "server.log", "federate", "server", "--dir", server, *listening)
    up.says("Uvicorn running")
    for device in (ours, flowers):
        tessera("federate", "key", device, cwd=tmp_path)
        tessera("federate", "register", "--dir", server, device / "node.key.pub", cwd=tmp_path)
    home.mkdir()
    (settings,) = re.findall(r"```toml\n(.*?)```", DOCUMENTED, re.DOTALL)
    (home / "config.toml").write_text(in_place(settings, **{"/absolute/SERVER": server}, **ports))
    join = ["federate", "join", "--server", f"localhost:{ports['port']}", "--ca", server / "ca.crt"]
    start_command(tmp_path / "join.log", *join, "--data-dir", ours)
    values = {
        "server.example": "localhost",
        "ca.crt": server / "ca.crt",
        "/absolute/DEVICE": flowers,
        "DEVICE": flowers,
    }
    node = documented("flower-supernode", **values, **ports)
    with (tmp_path / "supernode.log").open("wb") as log:
        subprocess.Popen(
            [program(node[0]), *node[1:], "--port", str(free_port())], env=environment(tmp_path / "home-of-device"),
            stdout=log, stderr=log,
        )  # fmt: skip
    command = documented("flwr run . tessera")
    shown = flwr_run(command, home, tmp_path / "runs", "federation.nodes=2 rounds=2 wire.gradients=float32")
    assert "500 users on 2 nodes" in shown
    assert reached(tmp_path / "runs" / "demo") == pytest.approx(figures, abs=1e-3)
    assert all((device / "private").is_dir() for device in (ours, flowers))
