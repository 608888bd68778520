"""A federation of separate machines, as its operator's programs see it, on the server's machine."""

import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tessera.common.config.settings import Settings
from tessera.common.errors import RunError
from tessera.common.protocol.published import Published
from tessera.common.utils.folder_lock import hold_folder
from tessera.common.utils.text.html import html_table
from tessera.deploy.api.progress import RunDisplay
from tessera.deploy.api.result import Result
from tessera.deploy.api.settings import Config, load_config
from tessera.deploy.environment import quieten
from tessera.deploy.executors.submitted import submitted_info, submitted_run, submitted_runs
from tessera.deploy.federation.registry import RegisteredNode, find
from tessera.deploy.federation.superlink import Control, Server
from tessera.server.live import stopping
from tessera.server.live.publication import published_in
from tessera.server.live.run_info import RunInfo

STOP_SECONDS = 60.0
"""Seconds that a run which is to stop has for the round that it is in."""
LOOK = 0.3
"""Seconds between two looks whether it has."""
if TYPE_CHECKING:
    import polars as pl


class Devices(tuple[RegisteredNode, ...]):
    """The devices that a server knows, in the order they were registered."""

    __slots__ = ()

    def frame(self) -> "pl.DataFrame":
        """They as a table: number, state, since, key, file."""
        import polars as pl

        return pl.DataFrame([asdict(one) for one in self], schema=list(RegisteredNode.__dataclass_fields__))

    def _repr_html_(self) -> str:
        rows = [(one.number, one.state, one.since, one.key, one.file) for one in self]
        return html_table("devices", ("device", "state", "since", "key", "registered from"), rows)


@dataclass(frozen=True)
class Overview:
    """How a federation stands: whether its server `answers`, its devices, its runs, the newest first, and what is published."""

    answers: bool
    devices: Devices
    runs: list[RunInfo]
    published: Published | None

    def facts(self) -> dict[str, Any]:
        """All of it as JSON knows it; of the published model what it is, without settings and files."""
        model = self.published and self.published.model_dump(mode="json", include={"run", "round", "time", "catalogue"})
        return {
            "answers": self.answers,
            "devices": [asdict(device) for device in self.devices],
            "runs": [run.facts() for run in self.runs],
            "published": model,
        }


class Federation:
    """The federation whose server has a folder, and runs."""

    def __init__(self, server_dir: str | os.PathLike[str]) -> None:
        """Raises `RunError` where no server ever ran from the folder."""
        quieten()
        self._control = Control(Server.load(Path(server_dir)))

    @property
    def folder(self) -> Path:
        """The server's folder."""
        return self._control.server.folder

    def devices(self) -> Devices:
        """The devices that the server knows, revoked ones too. Raises `RunError` where it does not answer."""
        return Devices(self._control.devices())

    def register(self, public_key: str | os.PathLike[str]) -> bool:
        """Let in the device with the public key in a file; false where it was registered before."""
        return self._control.register(Path(public_key))

    def revoke(self, *devices: str) -> list[RegisteredNode]:
        """Shut devices out for good, named by number or key file; return those that were not before."""
        known = self._control.devices()
        chosen = [find(known, name) for name in devices]
        return [device for device in chosen if self._shut_out(device)]

    def _shut_out(self, device: RegisteredNode) -> bool:
        if device.revoked:
            return False
        self._control.revoke(device)
        return True

    def submit(
        self,
        config: Settings | Config,
        catalogue: str | os.PathLike[str],
        *,
        runs: str | os.PathLike[str] = "runs",
        resume: bool = False,
        forever: bool = False,
        continues: str | os.PathLike[str] | None = None,
        progress: bool | Console = True,
    ) -> Result:
        """Start a run and follow it to its end; interrupted, it stops. `catalogue` is the server's dataset folder.

        A run `forever` has no last round: it waits while too few devices are there, and ends when it is stopped. `continues`
        is a run, by its folder or its name below `runs`, with whose best round this one begins: devices find what their people
        were in it.

        Its best model is published, if the server publishes (`tessera federate server`).

        Raises `ConfigError` or `RunError`, with what to do; of these `RunStopped` when somebody stops it.
        """
        from tessera.deploy.executors.grpc import carry_out
        from tessera.deploy.executors.run import find_run, require_source
        from tessera.deploy.job import Job
        from tessera.deploy.provisioning.datasets import check_order

        settings = config if isinstance(config, Settings) else load_config(config, executor="grpc")
        check_order(Path(catalogue), settings)
        console = progress if isinstance(progress, Console) else Console(highlight=False, quiet=not progress)
        job = Job(
            settings,
            Path(catalogue).absolute(),
            (),
            (Path(runs) / settings.name).absolute(),
            resume,
            publish=True,
            forever=forever,
        )
        if (job.run_dir / "config.yaml").exists() and not resume:
            raise RunError(
                f"submit: {job.run_dir} holds a run already; go on with it by --resume, or choose other --runs"
            )
        if continues and not resume:
            source = require_source(find_run(os.fspath(continues), Path(runs)), job.run_dir, settings, job.catalogue)
            job = replace(job, continues=source.path.absolute(), first=source.round)
        display = RunDisplay(settings, console, job.run_dir, job.first, endless=forever)
        with hold_folder(job.run_dir), display:
            carry_out(job, self._control, display.report)
        return Result.load(job.run_dir)

    def stop(self, name: str, wait: float = STOP_SECONDS) -> bool:
        """Stop the run of a name: once its round is over and saved, or in that round after `wait` seconds; say which.

        Nothing of the run is lost where True comes back; otherwise the round that it was in, and those since its last
        checkpoint. Raises `RunError` where there is no such run, or it has ended already.
        """
        run = submitted_run(self._control.server, name)
        if (flower := self._control.status(run.number)).finished:
            raise RunError(f"stop: {run.name} has ended already ({flower.state})")
        if wait > 0:
            stopping.ask(run.folder)
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            time.sleep(LOOK)
            if self._control.status(run.number).finished:
                return True
        with suppress(RunError):
            self._control.stop(run.number)
            return False
        return True

    def overview(self) -> Overview:
        """The devices, the runs that were submitted, and what is published, whether the server answers or not."""
        server = self._control.server
        try:
            devices, control = self.devices(), self._control
        except RunError:
            devices, control = Devices(), None
        runs = [submitted_info(run, control) for run in submitted_runs(server)]
        return Overview(control is not None, devices, runs, published_in(server.published))

    def run_folders(self) -> dict[str, Path]:
        """The folders of the runs that were submitted, by name, the newest first."""
        return {run.name: run.folder for run in submitted_runs(self._control.server)}

    def status(self, run_dir: str | os.PathLike[str]) -> RunInfo:
        """How a run stands, from its folder. Raises `DataError` where none has begun there."""
        return RunInfo.read(Path(run_dir))

    def __repr__(self) -> str:
        return f"Federation({str(self.folder)!r})"
