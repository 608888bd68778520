"""Regimes by name. A new one is one file here, one line below, and one in `common.regimes`: what the server does with it."""

from client.regimes.base import ALONE, Lesson, Method, Training, answer
from client.regimes.ditto import Ditto
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
    "pq": FedMosaic(),
    "fedmosaic": FedMosaic(),
}

__all__ = ["ALONE", "METHODS", "Lesson", "Method", "Training", "answer"]
