"""Regimes by name. A new one is one file here, one line below, and one in `common.regimes`: what the server does with it."""

from client.regimes.base import Lesson, Method, answer
from client.regimes.ditto import Ditto
from client.regimes.feddat import FedDAT
from client.regimes.feddpa import FedDPA
from client.regimes.fedit import FedIT
from client.regimes.fedmosaic import FedMosaic
from client.regimes.fedsim import FedSim
from client.regimes.sft import SFT

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

__all__ = ["METHODS", "Lesson", "Method", "answer"]
