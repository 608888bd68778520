"""Ways to train adapters, by name.

A new one is one file here, one line below, and one in `tessera.common.registry.methods`: what the server does with it.
"""

import tessera.client.adapters  # noqa: F401 (before PEFT)
from tessera.client.methods.base import LocalTraining, Method, answer
from tessera.client.methods.ditto import Ditto
from tessera.client.methods.feddat import FedDAT
from tessera.client.methods.feddpa import FedDPA
from tessera.client.methods.fedit import FedIT
from tessera.client.methods.fedmosaic import FedMosaic
from tessera.client.methods.fedsim import FedSim
from tessera.client.methods.sft import SFT

METHODS: dict[str, Method] = {
    "sft": SFT(),
    "fedit": FedIT(),
    "ditto": Ditto(),
    "fedsim": FedSim(),
    "feddpa": FedDPA(),
    "feddat": FedDAT(),
    "pq": FedMosaic(),
    "fedmosaic": FedMosaic(),
}

__all__ = ["METHODS", "LocalTraining", "Method", "answer"]
