"""What every process around Flower and Ray is started with: no telemetry, no update checks, nothing installed at run time."""

import os
from pathlib import Path

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def quieten(home: Path | None = None) -> None:
    """Set the variables in this process, and Flower's home folder to `home`, where nobody has set them."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if home is not None:
        os.environ["FLWR_HOME"] = str(home)
