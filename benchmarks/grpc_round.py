"""python -m benchmarks.grpc_round [--rounds 6] [--secure]      (or, anywhere: python -m tessera.benchmarks.grpc_round)

Measures how long a round over gRPC takes, and what a message costs a device, on Tessera's node and on Flower's SuperNode.

Three federations run at once on this machine, each a SuperLink and two nodes over loopback with TLS and node keys. One at a
time works, and they take turns, so that what else the machine does hits all alike:

flower empty   Flower's SuperNode with its defaults: Flower's `send_and_receive` sends each node four numbers and gets them back
ours empty     our node: item statistics, the smallest question that a device answers; 1,600 numbers come back
flower train   Flower's SuperNode, as `--node flower` starts it (its SuperExec looks for work more often): demo.yaml's training
ours train     our node: the same

With --secure two federations of three of our nodes train: one as it is, the other in secure sums.

A turn is a round that does not count, because a node that had nothing to do looks less often, and then two that do. Seconds are
what the ServerApp waits for a round: the median, the smallest and the largest. No round is evaluated. CPU seconds are those of
the node and of all that it started, what has ended included: from the end of a turn's first round until a second after its
last, divided by the messages in that time. The server is today's on Flower's SuperNodes too: an earlier version's waited
longer for them. The seed is the demo's, 0. Linux only; 3 minutes on two cores, 8 where much else uses them.

Ends with one line of JSON.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tessera.benchmarks.pacing.pace import EMPTY, TRAIN, PaceError, Pacer
from tessera.common.config.loading import load_settings
from tessera.common.errors import RunError, TesseraError
from tessera.common.secure.keys import NODE_KEY_FILE
from tessera.deploy.environment import NodeKind
from tessera.deploy.executors.run import make_job
from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.processes import Process, free_port, start, stop, tail, terminable
from tessera.deploy.federation.superlink import Control, Server, start_superlink, wait_until_ready
from tessera.deploy.federation.supernode import public_key, start_supernode
from tessera.deploy.job import Job
from tessera.deploy.provisioning.datasets import prepared_dataset

CONFIG = Path(__file__).parent / "demo.yaml"
CHANGES = ("rounds=10000", "evaluation.every=10000", "evaluation.baselines=false")
COUNTED = 2
"""Rounds of a turn that count."""
REST = 1.0
"""Seconds until what a node started for its last message has ended."""
FLOWER_EMPTY, OUR_EMPTY, FLOWER_TRAIN, OUR_TRAIN = "flower empty", "ours empty", "flower train", "ours train"
PLAIN, MASKED = "plain", "masked"
APP = """\
[project]
name = "{name}"
version = "1.0.0"

[tool.flwr.app]
publisher = "tessera"

[tool.flwr.app.components]
serverapp = "tessera.benchmarks.pacing.{name}:server"
clientapp = "{client}"

[tool.flwr.app.config]
"""


@dataclass(frozen=True)
class Comparison:
    """What is compared: federations of so many nodes, each with its kind of node and changed settings, and kinds of rounds by
    what they are called, each with its federation."""

    nodes: int
    federations: Mapping[str, tuple[NodeKind | None, Sequence[str]]]
    turns: Mapping[str, tuple[str, str]]
    ratios: Sequence[tuple[str, str]]
    """Pairs of rounds of which the first is shown as a part of the second: seconds, and of the last pair CPU seconds too."""


NODES = Comparison(
    2,
    {"flower-defaults": (None, ()), "flower": (NodeKind.flower, ()), "ours": (NodeKind.tessera, ())},
    {
        FLOWER_EMPTY: ("flower-defaults", EMPTY),
        OUR_EMPTY: ("ours", EMPTY),
        FLOWER_TRAIN: ("flower", TRAIN),
        OUR_TRAIN: ("ours", TRAIN),
    },
    [(OUR_EMPTY, FLOWER_EMPTY), (OUR_TRAIN, FLOWER_EMPTY), (OUR_TRAIN, FLOWER_TRAIN)],
)
MASKS = Comparison(
    3,
    {
        PLAIN: (NodeKind.tessera, ("privacy.secure=false",)),
        MASKED: (NodeKind.tessera, ("privacy.secure=true",)),
    },
    {PLAIN: (PLAIN, TRAIN), MASKED: (MASKED, TRAIN)},
    [(MASKED, PLAIN)],
)


@dataclass
class Case:
    """What was measured of one kind of round: seconds of each, and CPU seconds of all nodes for so many messages."""

    seconds: list[float] = field(default_factory=list)
    cpu: float = 0.0
    messages: int = 0

    @property
    def typical(self) -> float:
        """Median seconds of a round."""
        return median(self.seconds)

    @property
    def cpu_per_message(self) -> float:
        """CPU seconds that a message costs a node."""
        return self.cpu / self.messages


class Federation:
    """A server and its nodes, whose ServerApp does rounds when asked; to be stopped in any case."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[Process] = []
        self._pacer, self._nodes = Pacer(self._check), 0

    def start(self, job: Job, kind: NodeKind | None) -> None:
        """Start all processes, and a run: a job on our server and nodes of a `kind`, or Flower's own app on its defaults."""
        self._nodes = len(job.devices)
        make_certificates(self.folder, [], 1)
        server = Server.local(self.folder)
        self._processes.append(start_superlink(server, self.folder / "server.log"))
        self._control = Control(server)
        self._control.prepare()
        wait_until_ready(server, self._processes[0])
        address, ca = f"{server.host}:{server.port}", server.certificates.ca
        for number, device in enumerate(job.devices):
            name, home = f"node-{number}", self.folder / "home" / f"node-{number}"
            self._control.register(public_key(device))
            log = self.folder / f"{name}.log"
            self._processes.append(
                start_supernode(name, device, address, ca, home, log, kind)
                if kind
                else start_default_supernode(name, device / NODE_KEY_FILE, address, ca, home, log)
            )
        self._run = self._control.submit(
            paced_job(job, self._pacer.port) if kind else paced_echo(self._pacer.port, self._nodes)
        )

    def turn(self, kind: str, counted: int, case: Case) -> None:
        """Do a round that does not count and so many that do. Raises `RunError` with the end of the ServerApp's log."""
        try:
            self._pacer.round(kind)
            before = self._cpu()
            case.seconds += [self._pacer.round(kind) for _ in range(counted)]
        except PaceError as error:
            raise RunError(
                f"{self.folder.name}: {error}; its log ends:\n{tail(self._control.log(self._run))}"
            ) from None
        time.sleep(REST)
        case.cpu += self._cpu() - before
        case.messages += counted * self._nodes

    def stop(self) -> None:
        """End the run and all processes."""
        self._pacer.close()
        with suppress(TesseraError, AttributeError):  # it may not have begun
            self._control.stop(self._run)
        stop(self._processes[1:])
        stop(self._processes[:1])

    def _check(self) -> None:
        for process in self._processes:
            process.require()

    def _cpu(self) -> float:
        return sum(cpu_seconds(process.popen.pid) for process in self._processes[1:])


def main() -> None:
    """Start the federations, have them take turns, print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each kind that count")
    parser.add_argument("--secure", action="store_true", help="compare secure sums with plain answers")
    arguments = parser.parse_args()
    console, compared = Console(highlight=False), MASKS if arguments.secure else NODES
    with tempfile.TemporaryDirectory() as folder, terminable():
        cases = measure(compared, Path(folder), max(arguments.rounds, 1), console)
    show(compared, cases, console)
    print(json.dumps(figures(compared, cases)))


def measure(compared: Comparison, folder: Path, rounds: int, console: Console) -> dict[str, Case]:
    """Measure so many rounds of each kind, in turns."""
    federations = {name: Federation(folder / name) for name in compared.federations}
    cases = {name: Case() for name in compared.turns}
    try:
        for name, (kind, changes) in compared.federations.items():
            settings = load_settings(CONFIG, "grpc", [f"federation.nodes={compared.nodes}", *CHANGES, *changes])
            dataset = prepared_dataset(settings.data, None)
            job = make_job(settings, dataset, folder / name / "run", resume=False, overwrite=False)
            federations[name].start(job, kind)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            shown = bar.add_task("measuring", total=rounds * len(cases))
            for done in range(0, rounds, COUNTED):
                for name, (which, kind_of_round) in compared.turns.items():
                    counted = min(COUNTED, rounds - done)
                    federations[which].turn(kind_of_round, counted, cases[name])
                    bar.advance(shown, counted)
    finally:
        for federation in federations.values():
            federation.stop()
    return cases


def start_default_supernode(name: str, key: Path, server: str, ca: Path, home: Path, log: Path) -> Process:
    """Start Flower's SuperNode as Flower's documentation does, at the pace that is its default."""
    command = ["flower-supernode", "--superlink", server, "--root-certificates", str(ca)]
    command += ["--auth-supernode-private-key", str(key), "--port", str(free_port())]
    return start(name, command, home, log)


def paced_echo(port: int, nodes: int) -> bytes:
    """Flower's own app as a pyproject.toml."""
    return app("flower_app", "tessera.benchmarks.pacing.flower_app:client", {"port": port, "nodes": nodes})


def paced_job(job: Job, port: int) -> bytes:
    """Tessera's app as a pyproject.toml, the client as every device has it."""
    config: dict[str, str | int] = {
        "port": port,
        "settings": job.settings.model_dump_json(),
        "catalogue": str(job.catalogue),
        "run-dir": str(job.run_dir),
    }
    return app("tessera_app", "tessera.client.app:app", config)


def app(name: str, client: str, config: Mapping[str, str | int]) -> bytes:
    """An app of installed code as a pyproject.toml."""
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items()]
    return (APP.format(name=name, client=client) + "".join(lines)).encode()


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process, of those below it, and of those below it that have ended and were waited for."""
    process, total = psutil.Process(pid), 0.0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):  # it has just ended
            total += sum(one.cpu_times()[:4])
    return total


def show(compared: Comparison, cases: Mapping[str, Case], console: Console) -> None:
    """Print what was measured."""
    table = Table("", "rounds", "s a round", "smallest", "largest", "node's CPU s a message")
    for name, case in cases.items():
        seconds = (case.typical, min(case.seconds), max(case.seconds), case.cpu_per_message)
        table.add_row(name, str(len(case.seconds)), *(f"{value:.2f}" for value in seconds))
    console.print(table)
    for what, ratio in ratios(compared, cases).items():
        console.print(f"{what}: {ratio:.3f}")


def ratios(compared: Comparison, cases: Mapping[str, Case]) -> dict[str, float]:
    """What is asked of our node, or of secure sums, as parts of what it is compared with."""
    found = {f"{one} / {other}": cases[one].typical / cases[other].typical for one, other in compared.ratios}
    one, other = compared.ratios[-1]
    return found | {f"CPU, {one} / {other}": cases[one].cpu_per_message / cases[other].cpu_per_message}


def figures(compared: Comparison, cases: Mapping[str, Case]) -> dict[str, object]:
    """The line of JSON."""
    return {
        "rounds": min(len(case.seconds) for case in cases.values()),
        "nodes": compared.nodes,
        "cpus": os.cpu_count(),
        "seconds": {name: round(case.typical, 3) for name, case in cases.items()},
        "cpu_seconds_per_message": {name: round(case.cpu_per_message, 3) for name, case in cases.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios(compared, cases).items()},
    }


if __name__ == "__main__":
    main()
