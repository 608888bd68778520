"""Runs a federation as separate processes over gRPC: all of them on this machine, or on a server that runs already.

On this machine that is a SuperLink, Flower's server, and a SuperNode, Flower's client, for each device folder.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tessera.common.errors import DataError, RunError, RunStopped, TesseraError
from tessera.common.metrics.records import FILE, Record, read_line
from tessera.common.utils.atomic_files import write_bytes
from tessera.deploy.environment import NodeKind
from tessera.deploy.executors.submitted import note_run
from tessera.deploy.federation.certificates import make_certificates
from tessera.deploy.federation.processes import Process, end_leftovers, stop, tail, terminable
from tessera.deploy.federation.superlink import (
    Control,
    RunStatus,
    Server,
    describe_app,
    start_superlink,
    wait_until_ready,
)
from tessera.deploy.federation.supernode import public_key, start_supernode
from tessera.deploy.federation.worker import start_warm
from tessera.deploy.job import Job, Report
from tessera.deploy.provisioning.trial import answer_for_few
from tessera.server.live.stopping import STOPPED
from tessera.server.run_folder import STATUS, read_status

FOLDER = "federation"
"""Below a run's folder: certificates, Flower's state and the logs of all processes."""
DAYS = 365
POLL_SECONDS = 0.1
"""Seconds between two looks at the run's files."""
ASK_FIRST, ASK = 1.0, 10.0
"""Seconds between two questions to the server: before the run has told anything of itself, and after. They tell of a
ServerApp that died without a word. The server notes each in its log."""
SETTLE = 30.0
"""Seconds after which a ServerApp that told how the run went, but did not end, is taken at its word."""
PATIENCE = 30.0
"""Seconds for which the server may leave questions unanswered."""


def execute(job: Job, report: Report) -> None:
    """Run a job over gRPC with TLS and node keys on this machine: one SuperNode per device folder.

    Raises `RunError` with the reason when the run fails. Every process is stopped, whatever happens.
    """
    wanted, there = job.settings.federation.nodes, len(job.devices)
    if there < wanted:
        raise RunError(
            f"federation.nodes is {wanted}, but there are {there} device folders: share the users out to more"
        )
    end_leftovers(job.run_dir / FOLDER)
    folder = _fresh_folder(job.run_dir)
    answer_for_few(job.devices)
    started: list[Process] = []
    with terminable():
        try:
            control = _start(job, folder, started)
            # Once there is progress, nodes may go: how many are enough is the round loop's to say.
            carry_out(job, control, report, lambda begun: _require(started[:1] if begun else started))
        finally:
            stop(started[1:])  # the nodes first, so that they can sign off
            stop(started[:1])


def _start(job: Job, folder: Path, started: list[Process]) -> Control:
    """Start the server, what the nodes' workers are forked from, then each node as soon as its key is registered.

    They are appended to `started` in this order.
    """
    make_certificates(folder, [], DAYS)
    server = Server.local(folder)
    superlink = start_superlink(server, folder / "logs" / "server.log")
    started.append(superlink)
    workers = ""
    if job.node is NodeKind.tessera and (
        warm := start_warm(folder / "home" / "workers", folder / "logs" / "workers.log")
    ):
        process, workers = warm
        started.append(process)
    control = Control(server)
    control.prepare()  # while the server starts
    wait_until_ready(server, superlink)
    for number, device in enumerate(job.devices):
        control.register(public_key(device))
        name = f"node-{number}"
        address = f"{server.host}:{server.port}"
        home, log = folder / "home" / name, folder / "logs" / f"{name}.log"
        started.append(start_supernode(name, device, address, server.certificates.ca, home, log, job.node, workers))
    return control


def carry_out(job: Job, control: Control, report: Report, check: Callable[[bool], None] = lambda begun: None) -> None:
    """Submit a job to a running server and follow it to its end; interrupted, stop the run.

    `check` is called at every look, with whether there has been progress, and raises when the run has no hope.
    Raises `RunError` with the reason when the run fails.
    """
    folder = job.run_dir / FOLDER
    watch = Watch(job.run_dir)
    run = control.submit(describe_app(job, control.server))
    note_run(control.server, job, run)
    try:
        _follow(watch, control, run, report, check)
    except BaseException:  # it failed, was interrupted, or has no hope: if it has not ended, nobody follows it any more
        with suppress(TesseraError):
            control.stop(run)
        raise
    finally:
        with suppress(TesseraError):
            write_bytes(folder / "logs" / "serverapp.log", control.log(run).encode())


class Watch:
    """What a run writes to its folder from now on: new lines of metrics, and a new status."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.metrics, self.status = run_dir / FILE, run_dir / STATUS
        self._offset = self._size()
        self._before = self._written()
        self.begun = False

    def lines(self) -> list[Record]:
        """Complete lines that were added. A resumed run first cuts off what came after its checkpoint."""
        self._offset = min(self._offset, self._size())
        if self._size() == self._offset:
            return []
        with self.metrics.open("rb") as file:
            file.seek(self._offset)
            complete = file.read().rpartition(b"\n")[0]
        self._offset += len(complete) + 1 if complete else 0
        self.begun = self.begun or bool(complete)
        return [read_line(line, str(self.metrics)) for line in complete.splitlines()]

    def state(self) -> tuple[str, str]:
        """The run's own word on how it stands, as (state, reason); ("", "") while an earlier run's is still there."""
        if self._written() == self._before:
            return "", ""
        with suppress(DataError):
            status = read_status(self.run_dir)
            return status.state, status.reason
        return "", ""

    def _size(self) -> int:
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def _written(self) -> tuple[int, int]:
        if not self.status.exists():
            return 0, 0
        stat = self.status.stat()
        return stat.st_mtime_ns, stat.st_ino


def _follow(watch: Watch, control: Control, run: int, report: Report, check: Callable[[bool], None]) -> None:
    """Report progress until Flower says that the run is over. Raises `RunError` unless it completed."""
    flower = _Inquiry(control, run)
    told = float("inf")
    while not flower.status.finished and time.monotonic() < told + SETTLE:
        time.sleep(POLL_SECONDS)
        for line in watch.lines():
            report(line)
        state, _ = watch.state()
        if state in ("completed", "failed"):
            told = min(told, time.monotonic())
            flower.ask(0.0)
        else:
            check(watch.begun)
            flower.ask(ASK if state else ASK_FIRST)
    for line in watch.lines():
        report(line)
    _judge(watch.state(), flower.status, lambda: control.log(run))


class _Inquiry:
    """What Flower says of a run, asked now and then."""

    def __init__(self, control: Control, run: int) -> None:
        self.control, self.run = control, run
        self.status = RunStatus("unknown", "")
        self._asked = self._answered = time.monotonic()

    def ask(self, pause: float) -> None:
        """Ask again if it is `pause` seconds ago. Raises `RunError` when the server does not answer for long."""
        if (now := time.monotonic()) < self._asked + pause:
            return
        self._asked = now
        try:
            self.status, self._answered = self.control.status(self.run), now
        except RunError:
            if time.monotonic() > self._answered + ASK + PATIENCE:
                raise


def _judge(told: tuple[str, str], status: RunStatus, log: Callable[[], str]) -> None:
    """Raise `RunError` unless both the run and Flower say that it completed: Flower takes sys.exit for success."""
    if status.state == "finished:stopped" or told == ("failed", STOPPED):
        raise RunStopped(f"the run was {STOPPED}")
    if told[0] != "completed" or status.state == "finished:failed":
        reason = told[1] or status.details
        if told[0] == "running":  # it was killed, or had no room to write why it failed
            reason = f"the run's ServerApp ended without a word: {reason or status.state}; go on with --resume"
        raise RunError(reason or f"the run ended as {status.state!r} without a result; its log ends:\n{tail(log())}")


def _require(processes: list[Process]) -> None:
    for process in processes:
        process.require()


def _fresh_folder(run_dir: Path) -> Path:
    """The run's federation folder, without what an earlier run left there but its logs."""
    folder = run_dir.absolute() / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and path.name != "logs":
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()
    return folder
