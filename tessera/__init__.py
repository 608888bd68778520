"""Tessera, a federated recommender that understands images and text.

    import tessera

    result = tessera.train("config.yaml", data="data/mine")
    device = tessera.Device.open(result.devices[0])
    device.recommend("zoe")

What is named here is the stable part, described in docs/app.md. It is imported on first use: opening a device brings neither
Flower nor Ray. On first use also the environment variables of `tessera.deploy.environment` are set, where nobody has set them:
import tessera before torch, and small computations do not wait for other processes.

The folders of this repository are the packages `tessera.server`, `tessera.client`, `tessera.common`, `tessera.deploy` and
`tessera.benchmarks`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.client.people.device import Device, Recommendations
    from tessera.common.config.settings import Settings
    from tessera.common.errors import (
        ConfigError,
        DamagedError,
        DataError,
        Locked,
        PolicyRefused,
        RunError,
        RunStopped,
        StorageError,
        TesseraError,
    )
    from tessera.deploy.api.datasets import convert
    from tessera.deploy.api.federation import Federation
    from tessera.deploy.api.result import Result
    from tessera.deploy.api.settings import load_config
    from tessera.deploy.api.training import train

__all__ = [
    "ConfigError",
    "DamagedError",
    "DataError",
    "Device",
    "Federation",
    "Locked",
    "PolicyRefused",
    "Recommendations",
    "Result",
    "RunError",
    "RunStopped",
    "Settings",
    "StorageError",
    "TesseraError",
    "convert",
    "load_config",
    "train",
]

_HOMES = {
    "Device": "client.people.device",
    "Recommendations": "client.people.device",
    "Settings": "common.config.settings",
    "Result": "deploy.api.result",
    "Federation": "deploy.api.federation",
    "convert": "deploy.api.datasets",
    "load_config": "deploy.api.settings",
    "train": "deploy.api.training",
}
"""Which module each is in; errors are in `common.errors`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tessera' has no attribute {name!r}")
    from tessera.deploy.environment import quieten

    quieten()
    value = getattr(import_module(f"tessera.{_HOMES.get(name, 'common.errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
