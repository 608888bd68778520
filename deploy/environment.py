"""What every process of a federation finds: no telemetry, no update checks, nothing installed later, threads that sleep."""

import os
from enum import StrEnum
from pathlib import Path

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Threads of a matrix product that wait should sleep: where cores are shared they spin the others away (17 times slower).
    "OMP_WAIT_POLICY": "PASSIVE",
}


def quieten(home: Path | None = None) -> None:
    """Set the variables in this process where nobody has set them, and Flower's home folder to `home`.

    Before torch is imported: it reads how its threads wait only once.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if home is not None:
        os.environ["FLWR_HOME"] = str(home)


class NodeKind(StrEnum):
    """Who keeps a device connected: Tessera's own node, which answers at once, or Flower's SuperNode."""

    tessera = "tessera"
    flower = "flower"
