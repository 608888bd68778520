"""Runs a federation on Ray workers: Flower's simulation engine, with virtual nodes that host many users each."""

import logging
import os
import socket
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from tessera.client.app import device_app
from tessera.common.config.settings import Settings
from tessera.common.errors import RunError
from tessera.deploy.environment import quieten
from tessera.deploy.executors.shared_tensors import SharedTensorGrid
from tessera.deploy.job import Job, Report
from tessera.server.app import serve


def execute(job: Job, report: Report) -> None:
    """Run a job on a Ray cluster, or else on a Ray of the run's own, bound to loopback. Raises `RunError`."""
    quieten(job.run_dir / "flower")
    _require(job.settings)
    app, devices = ServerApp(), job.devices[0].parent
    failures: list[BaseException] = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            shared = SharedTensorGrid(grid, devices)
            serve(shared, job.settings, job.catalogue, job.run_dir, job.resume, report, continues=job.continues)
        except BaseException as error:
            failures.append(error)
            raise

    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        run_simulation(app, device_app(devices), len(job.devices), backend_config=backend(job.settings))
    except BaseException as error:
        raise failures[0] if failures else RunError(f"Ray could not run the simulation: {error}") from None
    if failures:
        raise failures[0]


def backend(settings: Settings) -> dict[str, Any]:
    """A worker has one CPU, and its share of a GPU where there is one and it is wanted."""
    address, here = _address(settings), torch.cuda.is_available() and settings.device != "cpu"
    # "local" is never the Ray that a run which died has left a note of.
    where = {"address": address} if address else {"address": "local", "_node_ip_address": "127.0.0.1"}
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    gpus = settings.simulation.gpus or (1 / (os.cpu_count() or 1) if here else 0.0)
    return {"init_args": where | quiet, "client_resources": {"num_cpus": 1, "num_gpus": gpus}}


def _address(settings: Settings) -> str:
    """Address of the Ray cluster to run on; "" for a Ray of the run's own."""
    return settings.simulation.address or os.environ.get("RAY_ADDRESS", "")


def _require(settings: Settings) -> None:
    """Raise `RunError` where Ray or Flower would wait for what will never be there."""
    address = _address(settings)
    host, _, port = address.rpartition(":")
    if not address and settings.simulation.gpus and not torch.cuda.is_available():
        raise RunError("simulation.gpus shares out a GPU, but this machine's torch sees no CUDA device: leave it out")
    if port.isdigit():  # other addresses, such as auto, are Ray's to look up
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            remedy = "start it there (ray start --head), or mend simulation.address or RAY_ADDRESS"
            raise RunError(f"no Ray answers at {address} ({error}): {remedy}") from None
