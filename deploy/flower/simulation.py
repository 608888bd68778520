"""Counts the nodes that Flower simulates for `flwr run`, and gives them their folders."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flwr.serverapp import Grid

from tessera.client.device_folder import simulated_devices
from tessera.common.errors import RunError
from tessera.deploy.executors.shared_tensors import SharedTensorGrid

LOOK_SECONDS = 0.5
PATIENCE = 120.0
"""Seconds within which Flower has to register simulated nodes."""


def n_simulated(grid: Grid) -> int:
    """How many nodes Flower simulates: it registers them one by one while the ServerApp starts. Raises `RunError`."""
    deadline, before = time.monotonic() + PATIENCE, 0
    while (count := len(list(grid.get_node_ids()))) != before or not count:
        if time.monotonic() > deadline:
            raise RunError(f"Flower's simulation registered no nodes within {PATIENCE:g} s: see its log")
        before = count
        time.sleep(LOOK_SECONDS)
    return count


@contextmanager
def simulated_nodes(grid: Grid, run_id: int, devices: Sequence[Path]) -> Iterator[Grid]:
    """Within it, the simulated nodes of a run find their folders, which lie side by side; yields the way to them."""
    folder, noted = devices[0].parent, simulated_devices(run_id)
    noted.parent.mkdir(parents=True, exist_ok=True)
    noted.unlink(missing_ok=True)
    noted.symlink_to(folder, target_is_directory=True)
    try:
        yield SharedTensorGrid(grid, folder)
    finally:
        noted.unlink(missing_ok=True)
